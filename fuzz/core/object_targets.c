/* The functions that the core has for Python under libFuzzer: FUZZ_TARGET=quote.
 *
 * An interpreter is embedded; object_targets.py has a function for each target, which calls those
 * of the core. Sanitized, and watched for coverage, is the core; Python itself is not. Its objects
 * are from malloc, so that reading past the end of one shows. */
#include "ak_objects.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
PyMODINIT_FUNC PyInit__objects(void);

static void fail(const char *what)
{
    PyErr_Print();
    (void)fprintf(stderr, "%s\n", what);
    abort();
}

/* Start Python in the folder of the project, which is what ROOT says. */
static PyObject *target_of(const char *name)
{
    if (PyImport_AppendInittab("_objects", PyInit__objects) != 0)
        fail("the module of the core was not added");
    Py_InitializeEx(0); /* without its signal handlers: libFuzzer has its own */
    PyObject *path = PySys_GetObject("path"), *root = PyUnicode_FromString(ROOT);
    if (path == NULL || root == NULL || PyList_Insert(path, 0, root) != 0)
        fail("the path of the project was not added");
    PyObject *core = PyImport_ImportModule("_objects");
    PyObject *ours = core == NULL ? NULL : PyImport_ImportModule("fuzz.core.object_targets");
    PyObject *targets = ours == NULL ? NULL : PyObject_CallMethod(ours, "targets", "O", core);
    PyObject *target = targets == NULL ? NULL : PyDict_GetItemString(targets, name);
    if (target == NULL)
        fail("there is no such target");
    return target;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static PyObject *target;

    if (target == NULL) {
        const char *name = getenv("FUZZ_TARGET");
        target = target_of(name == NULL ? "" : name);
    }
    PyObject *found = PyObject_CallFunction(target, "y#", (const char *)data, (Py_ssize_t)size);
    if (found == NULL)
        fail("the target raised");
    Py_DECREF(found);
    return 0;
}
