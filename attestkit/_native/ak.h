/* Everything the C core offers, for its own files and for cffi. */
#ifndef AK_H
#define AK_H

#include <stddef.h>
#include <stdint.h>

#include "ak_api.cdef.h"

#endif
