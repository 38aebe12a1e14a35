/* ref_end.h - ends what ref_begin.h began: the names of this build's executor again. */
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
