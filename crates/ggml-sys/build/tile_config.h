// Included ahead of every file of ggml's CPU backend.
//
// GCC up to 11.4, 12.3 and 13.2 declares that _tile_loadconfig reads 8 bytes, where the instruction reads 64 (GCC bug
// 114098). The optimiser then drops what ggml writes to the other 56, and with such a configuration the first use of an
// AMX tile ends the program (SIGILL or SIGSEGV). This says what is read.
#ifdef __AMX_TILE__
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
#endif
