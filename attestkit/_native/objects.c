/* The module `attestkit._native._objects`. It is in the same library as cffi's, which
 * _native/__init__.py loads a second time, under this one's name (PEP 489). */
#include "ak_objects.h"

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_objects",
    .m_size = 0,
};

PyMODINIT_FUNC PyInit__objects(void); /* Python.h does not declare it */

PyMODINIT_FUNC PyInit__objects(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || ak_add_quote_objects(module) != 0 || ak_add_log_objects(module) != 0 ||
        ak_add_agent_objects(module) != 0 || ak_add_replay_objects(module) != 0 ||
        ak_add_sha384_objects(module) != 0)
        Py_CLEAR(module);
    return module;
}
