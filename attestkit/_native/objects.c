/* The module `attestkit._native._objects`: functions and a class whose work is to make many small
 * objects, for which calls through cffi and Python code behind them would take longer than the
 * work. All that walks, hashes or checks bytes is in files that know nothing of Python, and is
 * declared to cffi.
 *
 * It is in the same library as cffi's module, which _native/__init__.py loads a second time, under
 * this one's name; initialisation in phases (PEP 489) gives each interpreter its own. */
#include "ak_objects.h"

static int fill(PyObject *module)
{
    return ak_add_quote_objects(module) != 0 || ak_add_log_objects(module) != 0 ||
                   ak_add_agent_objects(module) != 0 || ak_add_replay_objects(module) != 0 ||
                   ak_add_sha384_objects(module) != 0 || ak_add_column_objects(module) != 0
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
