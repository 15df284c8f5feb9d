/* The part of the core that talks to Python itself: what is made of many small objects.
 *
 * Nothing here looks at bytes that nobody has checked; that is for the files without Python. */
#ifndef AK_OBJECTS_H
#define AK_OBJECTS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000
#include <Python.h>
#include <structmember.h>

/* Add the names of a file to the module; 0, or -1 with an exception. */
int ak_add_quote_objects(PyObject *module);
int ak_add_column_objects(PyObject *module);
int ak_add_log_objects(PyObject *module);

#endif
