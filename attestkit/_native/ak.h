/* The public interface of the C core, for its own files and for cffi. */
#ifndef AK_H
#define AK_H

#include <stddef.h>
#include <stdint.h>

#include "ak_api.cdef.h"

#endif
