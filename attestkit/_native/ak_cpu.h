/* CPU features that kernels ask for before they use them. */
#ifndef AK_CPU_H
#define AK_CPU_H

#include <stdbool.h>

#include "ak.h"

/* The SHA extensions of x86-64, with the SSSE3 and SSE4.1 their code needs. */
#define AK_CPU_SHA_NI 1U

#endif
