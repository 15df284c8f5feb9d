/* The Python function of the check of CBOR. */
#include "ak_objects.h"

#include <stdbool.h>
#include <stdlib.h>

#include "ak_cbor.h"

enum { FEW_KEYS = 256 };

/* The bytes to check. */
typedef struct {
    const uint8_t *p;
    size_t size;
    int canonical;
} document;

/* Check with room for all keys; `at` is undefined if memory is exhausted, which returns false. */
static bool check_all(const document *d, ak_status *status, size_t *at)
{
    const uint8_t **keys = malloc(AK_CBOR_MAX_VALUES * sizeof *keys);
    if (keys == NULL)
        return false;
    *status = ak_cbor_check(d->p, d->size, d->canonical, keys, AK_CBOR_MAX_VALUES, at);
    free(keys);
    return true;
}

/* Check with a few keys on the stack, which is enough for most documents. */
static bool check(const document *d, ak_status *status, size_t *at)
{
    const uint8_t *keys[FEW_KEYS];
    *status = ak_cbor_check(d->p, d->size, d->canonical, keys, FEW_KEYS, at);
    return *status != AK_E_CBOR_VALUES || check_all(d, status, at);
}

/* Check `data` from the offset `start` on. The caller holds a reference to the object, which is
 * immutable, so the GIL is released for large ones. */
static PyObject *cbor_check(PyObject *refuse, PyObject *args, PyObject *named)
{
    static char *names[] = {"", "", "canonical", NULL};
    PyObject *data;
    Py_ssize_t start;
    document d;
    ak_status status;
    size_t at = 0;
    if (!PyArg_ParseTupleAndKeywords(args, named, "Sn$p", names, &data, &start, &d.canonical))
        return NULL;
    const Py_ssize_t size = PyBytes_Size(data);
    if (start < 0 || start > size) {
        PyErr_SetString(PyExc_ValueError, "the start must be inside the data");
        return NULL;
    }
    d.p = (const uint8_t *)PyBytes_AsString(data) + start;
    d.size = (size_t)(size - start);
    PyThreadState *thread = ak_release_gil_for((size_t)size);
    const bool checked = check(&d, &status, &at);
    ak_take_gil(thread);
    if (!checked)
        return PyErr_NoMemory();
    if (status == AK_OK)
        Py_RETURN_NONE;
    ak_raise_refusal(refuse, (int)status, (size_t)start + at);
    return NULL;
}

static PyMethodDef checker = {"cbor_check", (PyCFunction)(void (*)(void))cbor_check,
                              METH_VARARGS | METH_KEYWORDS, NULL};

/* The function above; its `self` is the Python function that creates exceptions. */
static PyObject *cbor_checker(PyObject *module, PyObject *refuse)
{
    (void)module;
    return PyCFunction_NewEx(&checker, refuse, NULL);
}

static PyMethodDef functions[] = {
    {"cbor_checker", cbor_checker, METH_O, NULL},
    {0},
};

int ak_add_cbor_objects(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
