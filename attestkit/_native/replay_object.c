/* Replay as a function of Python's. Through cffi, with memory from there, out of which Python cut
 * the values, a log of 28 events took 0.4 us more than the 2.7 that it takes so (CPython 3.11,
 * Sapphire Rapids). */
#include "ak_objects.h"

#include "ak.h"

enum { REGISTERS = 4, DIGEST = 48 };

static PyObject *tuple_of(const uint8_t *values)
{
    PyObject *all = PyTuple_New(REGISTERS);
    for (Py_ssize_t i = 0; i < REGISTERS && all != NULL; i++) {
        PyObject *one = PyBytes_FromStringAndSize((const char *)values + DIGEST * i, DIGEST);
        if (one == NULL || PyTuple_SetItem(all, i, one) != 0)
            Py_CLEAR(all);
    }
    return all;
}

/* Replay registers and digests. limits: from how many events on another function is to do it, and
 * that function, which also raises what is to be raised. */
static PyObject *replay(PyObject *limits, PyObject *const *columns, Py_ssize_t count)
{
    uint8_t values[REGISTERS * DIGEST];
    if (count != 2 || !PyBytes_Check(columns[0]) || !PyBytes_Check(columns[1])) {
        PyErr_SetString(PyExc_TypeError, "registers and digests are bytes");
        return NULL;
    }
    const Py_ssize_t events = PyBytes_Size(columns[0]);
    const uint8_t *registers = (const uint8_t *)PyBytes_AsString(columns[0]);
    const uint8_t *digests = (const uint8_t *)PyBytes_AsString(columns[1]);
    if (events < PyLong_AsSsize_t(PyTuple_GetItem(limits, 0)) &&
        PyBytes_Size(columns[1]) == DIGEST * events &&
        ak_replay(registers, digests, (size_t)events, values) == AK_OK)
        return tuple_of(values);
    return PyObject_CallFunctionObjArgs(PyTuple_GetItem(limits, 1), columns[0], columns[1], NULL);
}

static PyMethodDef replay_method = {"replay", (PyCFunction)(void (*)(void))replay, METH_FASTCALL,
                                    NULL};

static PyObject *replayer(PyObject *module, PyObject *limits)
{
    Py_ssize_t many;
    PyObject *otherwise;
    (void)module;
    if (!PyArg_ParseTuple(limits, "nO", &many, &otherwise))
        return NULL;
    return PyCFunction_NewEx(&replay_method, limits, NULL);
}

static PyMethodDef functions[] = {
    {"replayer", replayer, METH_VARARGS, NULL},
    {0},
};

int ak_add_replay_objects(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
