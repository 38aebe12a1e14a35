/* ref_end.h - act_t, real_t and OP of this build's executor: op.h takes them from here, and so ends what ref_begin.h began. */
#undef act_t
#undef real_t
#undef OP
#if defined(STAGEDIFF_REF)
#define act_t    double
#define real_t   double
#define OP(name) ref_##name
#elif defined(STAGEDIFF_BF16)
#define act_t    bf16
#define real_t   float
#define OP(name) name
#else
#define act_t    float
#define real_t   float
#define OP(name) name
#endif
