/* ref_begin.h - from here to ref_end.h, op headers declare the double-precision oracle (ref_...). */
#undef act_t
#undef real_t
#undef OP
#define act_t    double
#define real_t   double
#define OP(name) ref_##name
