/* The files that use the Python API, because most of their work is to create objects.
 *
 * They do not parse untrusted bytes; that is done in the files without Python. */
#ifndef AK_OBJECTS_H
#define AK_OBJECTS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000
#include <Python.h>
#include <structmember.h>

/* Add the names of a file to the module; 0, or -1 with an exception. */
int ak_add_quote_objects(PyObject *module);
int ak_add_log_objects(PyObject *module);
int ak_add_agent_objects(PyObject *module);
int ak_add_replay_objects(PyObject *module);
int ak_add_hash_objects(PyObject *module);
int ak_add_column_objects(PyObject *module);
int ak_add_pck_objects(PyObject *module);
int ak_add_cbor_objects(PyObject *module);
int ak_add_evidence_objects(PyObject *module);
int ak_add_event_objects(PyObject *module);

/* From this number of bytes on, parsing or hashing takes 0.1 ms or more, and the GIL is released.
 * The caller holds references to the objects, which are immutable. */
enum { AK_LARGE = 1 << 18 };

/* Release the GIL for large input, and take it again. */
PyThreadState *ak_release_gil_for(size_t size);
void ak_take_gil(PyThreadState *thread);

/* Raise the exception that the Python function `refuse` creates from a status and an offset. */
void ak_raise_refusal(PyObject *refuse, int status, size_t at);

/* Return whether a class is a subclass of tuple; otherwise raise TypeError. */
int ak_is_tuple(PyTypeObject *class);

/* Return an instance of a subclass of tuple. Takes the references to the items, in any case; NULL
 * if one of them is NULL. */
PyObject *ak_tuple(PyTypeObject *class, PyObject *const *items, Py_ssize_t count);

#endif
