/* The extension module `attestkit._native._objects`: functions and types that create many small
 * objects, for which calls through cffi would take longer than the actual work. Code that parses,
 * checks or hashes bytes is in files that do not use the Python API, and is declared to cffi.
 *
 * The module is in the same shared library as cffi's module; _native/__init__.py loads the library
 * a second time under this module's name. Multi-phase initialisation (PEP 489) gives each
 * interpreter its own module. */
#include "ak_objects.h"

PyThreadState *ak_release_gil_for(size_t size)
{
    return size < AK_LARGE ? NULL : PyEval_SaveThread();
}

void ak_take_gil(PyThreadState *thread)
{
    if (thread != NULL)
        PyEval_RestoreThread(thread);
}

void ak_raise_refusal(PyObject *refuse, int status, size_t at)
{
    PyObject *error = PyObject_CallFunction(refuse, "in", status, (Py_ssize_t)at);
    if (error != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
}

int ak_is_tuple(PyTypeObject *class)
{
    if (PyType_IsSubtype(class, &PyTuple_Type))
        return 1;
    PyErr_SetString(PyExc_TypeError, "the class is a named tuple");
    return 0;
}

PyObject *ak_tuple(PyTypeObject *class, PyObject *const *items, Py_ssize_t count)
{
    PyObject *made = PyType_GenericAlloc(class, count);
    int whole = made != NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        whole = whole && items[i] != NULL;
        if (made == NULL)
            Py_XDECREF(items[i]);
        else if (PyTuple_SetItem(made, i, items[i]) != 0) /* takes the reference */
            whole = 0;
    }
    if (!whole)
        Py_CLEAR(made);
    return made;
}

static int fill(PyObject *module)
{
    return ak_add_quote_objects(module) != 0 || ak_add_log_objects(module) != 0 ||
                   ak_add_agent_objects(module) != 0 || ak_add_replay_objects(module) != 0 ||
                   ak_add_hash_objects(module) != 0 || ak_add_column_objects(module) != 0 ||
                   ak_add_pck_objects(module) != 0 || ak_add_cbor_objects(module) != 0 ||
                   ak_add_evidence_objects(module) != 0 || ak_add_event_objects(module) != 0
               ? -1
               : 0;
}

static PyModuleDef_Slot phases[] = {
    {Py_mod_exec, (void *)fill},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_objects",
    .m_size = 0,
    .m_slots = phases,
};

PyMODINIT_FUNC PyInit__objects(void); /* Python.h does not declare it */

PyMODINIT_FUNC PyInit__objects(void)
{
    return PyModuleDef_Init(&definition);
}
