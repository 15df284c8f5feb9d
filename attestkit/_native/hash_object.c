/* Python functions for SHA-384 and Keccak. A message of one block takes 0.25 us, compared with 0.46
 * us through cffi; eight messages take 0.83 us, compared with 2.3 us (CPython 3.11, Sapphire
 * Rapids). */
#include "ak_objects.h"

#include <stdbool.h>
#include <string.h>

#include "ak.h"

enum { DIGEST = 48 };

/* Maximum total size of messages that are concatenated and hashed in lanes; larger batches are
 * hashed one by one, to save memory. */
#define MAX_JOINED (1U << 24)

static PyObject *digest_of(PyObject *message)
{
    uint8_t digest[DIGEST];
    if (!PyBytes_Check(message)) {
        PyErr_SetString(PyExc_TypeError, "only bytes are hashed");
        return NULL;
    }
    ak_sha384((const uint8_t *)PyBytes_AsString(message), (size_t)PyBytes_Size(message), digest);
    return PyBytes_FromStringAndSize((const char *)digest, DIGEST);
}

static PyObject *sha384(PyObject *module, PyObject *message)
{
    (void)module;
    return digest_of(message);
}

/* Return the total size of the messages; SIZE_MAX if they are not to be concatenated. */
static size_t size_of(PyObject *messages, Py_ssize_t count)
{
    size_t size = 0;
    for (Py_ssize_t i = 0; i < count && size <= MAX_JOINED; i++) {
        PyObject *message = PyTuple_GetItem(messages, i);
        if (!PyBytes_Check(message))
            return SIZE_MAX;
        size += (size_t)PyBytes_Size(message);
    }
    return size <= MAX_JOINED ? size : SIZE_MAX;
}

/* Concatenate messages of this total size, hash them, and return a list of digests. */
static PyObject *hash_joined(PyObject *messages, Py_ssize_t count, size_t size)
{
    const size_t n = (size_t)count;
    uint32_t *sizes = PyMem_Malloc(n * (sizeof *sizes + DIGEST) + size);
    if (sizes == NULL)
        return PyErr_NoMemory();
    uint8_t *digests = (uint8_t *)(sizes + n), *data = digests + DIGEST * n, *at = data;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *message = PyTuple_GetItem(messages, i);
        sizes[i] = (uint32_t)PyBytes_Size(message);
        memcpy(at, PyBytes_AsString(message), sizes[i]);
        at += sizes[i];
    }
    ak_sha384_many(data, NULL, sizes, n, digests);
    PyObject *all = PyList_New(count);
    for (Py_ssize_t i = 0; i < count && all != NULL; i++) {
        PyObject *one = PyBytes_FromStringAndSize((const char *)digests + DIGEST * i, DIGEST);
        if (one == NULL || PyList_SetItem(all, i, one) != 0)
            Py_CLEAR(all);
    }
    PyMem_Free(sizes);
    return all;
}

static PyObject *hash_one_by_one(PyObject *messages, Py_ssize_t count)
{
    PyObject *all = PyList_New(count);
    for (Py_ssize_t i = 0; i < count && all != NULL; i++) {
        PyObject *one = digest_of(PyTuple_GetItem(messages, i));
        if (one == NULL || PyList_SetItem(all, i, one) != 0)
            Py_CLEAR(all);
    }
    return all;
}

static PyObject *sha384_many(PyObject *module, PyObject *sequence)
{
    PyObject *messages = PySequence_Tuple(sequence);
    (void)module;
    if (messages == NULL)
        return NULL;
    const Py_ssize_t count = PyTuple_Size(messages);
    const size_t size = size_of(messages, count);
    PyObject *all = count < 2 || size == SIZE_MAX ? hash_one_by_one(messages, count)
                                                  : hash_joined(messages, count, size);
    Py_DECREF(messages);
    return all;
}

static PyObject *keccak(PyObject *module, PyObject *args)
{
    uint8_t digest[64];
    PyObject *message;
    Py_ssize_t digest_size;
    (void)module;
    if (!PyArg_ParseTuple(args, "Sn", &message, &digest_size))
        return NULL;
    if (digest_size != 32 && digest_size != 48 && digest_size != 64) {
        PyErr_SetString(PyExc_ValueError, "Keccak: digests have 32, 48 or 64 bytes");
        return NULL;
    }
    const uint8_t *data = (const uint8_t *)PyBytes_AsString(message);
    const size_t size = (size_t)PyBytes_Size(message);
    PyThreadState *thread = ak_release_gil_for(size);
    ak_keccak(data, size, (size_t)digest_size, digest);
    ak_take_gil(thread);
    return PyBytes_FromStringAndSize((const char *)digest, digest_size);
}

static PyMethodDef functions[] = {
    {"sha384", sha384, METH_O, NULL},
    {"sha384_many", sha384_many, METH_O, NULL},
    {"keccak", keccak, METH_VARARGS, NULL},
    {0},
};

int ak_add_hash_objects(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
