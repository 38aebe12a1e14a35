/* report_html.c - small HTML writers of the report, and its style sheet. */
#include "analysis/report.h"
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

void html_bytes(FILE *out, const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        char ch = text[i];
        if (ch == '&')
            fputs("&amp;", out);
        else if (ch == '<')
            fputs("&lt;", out);
        else if (ch == '>')
            fputs("&gt;", out);
        else if (ch == '"')
            fputs("&quot;", out);
        else if (ch == '\'')
            fputs("&#39;", out);
        else if ((unsigned char)ch >= 0x20 || ch == '\n' || ch == '\t')
            fputc(ch, out);
        else
            fputs("\xef\xbf\xbd", out); /* control characters are not allowed in HTML */
    }
}

void html_text(FILE *out, const char *text) {
    if (text) html_bytes(out, text, strlen(text));
}

void html_base64(FILE *out, const void *data, size_t bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i += 3) {
        size_t n = bytes - i < 3 ? bytes - i : 3;
        uint32_t word = (uint32_t)p[i] << 16 | (n > 1 ? (uint32_t)p[i + 1] << 8 : 0) | (n > 2 ? p[i + 2] : 0);
        fputc(digits[word >> 18], out);
        fputc(digits[word >> 12 & 63], out);
        fputc(n > 1 ? digits[word >> 6 & 63] : '=', out);
        fputc(n > 2 ? digits[word & 63] : '=', out);
    }
}

void html_count(FILE *out, long n) {
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%ld", n);
    for (int i = 0; i < length; i++) {
        fputc(digits[i], out);
        if (length > 4 && i + 1 < length && (length - 1 - i) % 3 == 0) fputs("&#8239;", out);
    }
}

void html_number(FILE *out, double x) {
    if (isnan(x))
        fputs("&ndash;", out);
    else if (x == 0)
        fputs("0", out);
    else if (fabs(x) < 0.001)
        fprintf(out, "%.1f&middot;10<sup>&minus;%d</sup>", copysign(pow(10, log10(fabs(x)) + ceil(-log10(fabs(x)))), x),
                (int)ceil(-log10(fabs(x))));
    else if (fabs(x) < 1)
        fprintf(out, "%.3f", x);
    else if (fabs(x) < 100)
        fprintf(out, "%.2f", x);
    else
        fprintf(out, "%.0f", x);
}

void html_table_open(struct report *r, const char *caption) {
    fprintf(r->out, "<div class=\"scroll\"><table><caption><b>Table %d.</b> %s</caption>\n", ++r->tables, caption);
}

void html_figure_open(struct report *r) { fputs("<figure>\n", r->out); }

void html_figure_close(struct report *r, const char *title, const char *caption_format, ...) {
    va_list args;
    fprintf(r->out, "\n<figcaption><b>Figure %d. %s.</b> ", ++r->figures, title);
    va_start(args, caption_format);
    vfprintf(r->out, caption_format, args);
    va_end(args);
    fputs("</figcaption></figure>\n", r->out);
}

const char *const report_css[] = {
    ":root{--ink:#1d2126;--soft:#5b636e;--line:#dfe2e6;--wash:#f6f7f8;--blue:#0072b2;--orange:#d55e00}\n"
    "*{box-sizing:border-box}\n"
    "html{-webkit-text-size-adjust:100%}\n"
    "body{margin:0;background:#fff;color:var(--ink);font:17px/1.6 Charter,'Bitstream Charter','Iowan Old Style','Palatino Linotype',"
    "P052,Georgia,serif}\n"
    "main{max-width:58rem;margin:0 auto;padding:3.5rem 1.5rem 5rem}\n"
    "h1,h2,h3,figcaption,table,nav,.tiles,.stats,.tokens,.eyebrow,footer,details,figure svg{font-family:-apple-system,"
    "'Segoe UI','Helvetica Neue',Roboto,'Liberation Sans',Arial,system-ui,sans-serif}\n"
    "h1{font-size:1.9rem;line-height:1.2;margin:.2rem 0 .6rem;letter-spacing:-.015em;font-weight:700}\n"
    "h2{font-size:1.4rem;line-height:1.3;margin:3.6rem 0 .8rem;padding-top:1.1rem;border-top:1px solid var(--line)}\n"
    "h3{font-size:1.05rem;margin:0}h3.part{margin:2rem 0 0;font-size:1.15rem}\n"
    "p,ul,dl{max-width:44rem}\np{margin:.8rem 0}\n"
    ".eyebrow{color:var(--soft);font-size:.8rem;letter-spacing:.07em;text-transform:uppercase;margin:0}\n"
    ".lede{font-size:1.12rem;color:#3a4048}\n"
    "nav{font-size:.88rem;margin:1.2rem 0 0;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem}\n"
    "a{color:var(--blue);text-decoration:none}a:hover{text-decoration:underline}\n"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:1rem;margin:2rem 0 1.4rem}\n"
    ".tile{background:var(--wash);border-radius:10px;padding:1rem 1.1rem;font-size:.85rem;line-height:1.4;color:var(--soft)}\n"
    ".tile b{display:block;font-size:1.9rem;line-height:1.15;color:var(--ink);font-weight:650;font-variant-numeric:tabular-nums}\n"
    ".findings{padding-left:1.2rem}.findings li{margin:.45rem 0}\n"
    "figure{margin:1.8rem 0 2rem}\nfigure svg{width:100%;height:auto;display:block}\n"
    "figcaption,caption{font-size:.86rem;line-height:1.5;color:var(--soft);text-align:left}\n"
    "figcaption{max-width:46rem;margin-top:.4rem}figcaption b,caption b{color:var(--ink)}\n"
    ".scroll{overflow-x:auto;margin:1.6rem 0 2rem}\n"
    "table{border-collapse:collapse;font-size:.88rem;width:100%;font-variant-numeric:tabular-nums}\n"
    "caption{caption-side:top;padding-bottom:.6rem;max-width:46rem}\n"
    "th,td{padding:.38rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}\n"
    "th{font-weight:600;color:var(--soft);border-bottom:2px solid var(--line);vertical-align:bottom}\n"
    "th:first-child,td:first-child{text-align:left;padding-left:0}th:last-child,td:last-child{padding-right:0}\n"
    "td.best{font-weight:650}td .pm{color:var(--soft)}\n"
    "td .bar{display:inline-block;height:.62em;background:var(--orange);border-radius:2px;vertical-align:baseline}\n"
    "i.swatch{display:inline-block;width:.75em;height:.75em;border-radius:50%;margin-right:.5em;vertical-align:-.03em}\n",
    ".feature{border:1px solid var(--line);border-radius:12px;padding:1.1rem 1.2rem 1.2rem;margin:1.2rem 0;break-inside:avoid}\n"
    ".stats{display:flex;flex-wrap:wrap;gap:.15rem 1.3rem;font-size:.82rem;color:var(--soft);margin:.35rem 0 .9rem;"
    "font-variant-numeric:tabular-nums}.stats b{color:var(--ink);font-weight:600}\n"
    ".examples{display:grid;grid-template-columns:repeat(5,1fr);gap:.9rem}\n"
    ".example svg{width:100%;height:auto;display:block;border-radius:6px;background:#000}\n"
    ".tokens{font-size:.78rem;line-height:1.75;margin-top:.45rem;overflow-wrap:anywhere}\n"
    ".tokens span{border-radius:3px;padding:.06em 0;white-space:pre-wrap}.tokens .t{color:#8b929b}\n"
    ".tokens .peak{outline:1.5px solid var(--orange)}\n"
    ".legend{display:inline-block;width:7rem;height:.7em;border-radius:3px;vertical-align:-.05em;margin:0 .4em}\n"
    "dl{display:grid;grid-template-columns:minmax(9rem,auto) 1fr;gap:.55rem 1.4rem;max-width:52rem}\n"
    "dt{font-weight:700}dd{margin:0}\n"
    "details{margin:1rem 0;font-size:.88rem}summary{cursor:pointer;color:var(--blue)}\n"
    "pre{background:var(--wash);border-radius:8px;padding:1rem;overflow-x:auto;font:12.5px/1.5 ui-monospace,'SF Mono','Liberation Mono',"
    "Menlo,monospace}\ncode{font:.86em ui-monospace,'SF Mono','Liberation Mono',Menlo,monospace}\n"
    "footer{margin-top:4rem;font-size:.8rem;color:var(--soft)}\n"
    "@media "
    "(max-width:40rem){body{font-size:16px}main{padding-top:2rem}dl{grid-template-columns:1fr}dd{margin-bottom:.5rem}.examples{grid-"
    "template-columns:repeat(auto-fill,minmax(8rem,1fr))}}\n"
    "@media print{main{max-width:none;padding:0}nav{display:none}h2{break-after:avoid}}\n",
    NULL,
};
