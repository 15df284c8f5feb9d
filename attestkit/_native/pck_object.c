/* PCK certificates as Python objects. */
#include "ak_objects.h"

#include "ak_pck.h"

enum { FIELDS = 19 };

static PyObject *bytes_at(const uint8_t *p, size_t size)
{
    return PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)size);
}

static PyObject *part(ak_part of)
{
    return bytes_at(of.p, of.size);
}

static PyObject *none(void)
{
    Py_INCREF(Py_None);
    return Py_None;
}

/* Return a tuple with the fields, in the order of PckCertificateFields. */
static PyObject *fields(const ak_pck_certificate *c)
{
    const bool has_instance = c->instance_id != NULL;
    PyObject *const made[FIELDS] = {
        part(c->serial),
        part(c->issuer),
        part(c->subject),
        PyLong_FromLongLong(c->not_before),
        PyLong_FromLongLong(c->not_after),
        bytes_at(c->point, AK_PCK_POINT_SIZE),
        part(c->tbs),
        part(c->signature),
        bytes_at(c->ppid, AK_PCK_PPID_SIZE),
        bytes_at(c->components, AK_PCK_COMPONENTS),
        PyLong_FromUnsignedLong(c->pcesvn),
        bytes_at(c->cpusvn, AK_PCK_CPUSVN_SIZE),
        bytes_at(c->pceid, AK_PCK_PCEID_SIZE),
        bytes_at(c->fmspc, AK_PCK_FMSPC_SIZE),
        PyLong_FromLong(c->sgx_type),
        has_instance ? bytes_at(c->instance_id, AK_PCK_INSTANCE_SIZE) : none(),
        has_instance ? PyBool_FromLong(c->flags[0]) : none(),
        has_instance ? PyBool_FromLong(c->flags[1]) : none(),
        has_instance ? PyBool_FromLong(c->flags[2]) : none(),
    };
    PyObject *all = PyTuple_New(FIELDS);
    bool whole = all != NULL;
    for (Py_ssize_t i = 0; i < FIELDS; i++) {
        whole = whole && made[i] != NULL;
        if (all == NULL)
            Py_XDECREF(made[i]);
        else if (PyTuple_SetItem(all, i, made[i]) != 0) /* takes the reference, in any case */
            whole = false;
    }
    if (!whole)
        Py_CLEAR(all);
    return all;
}

/* `self` has `tuple.__new__` and the class. */
static PyObject *read_pck_certificate(PyObject *self, PyObject *der)
{
    ak_pck_certificate found;
    if (!PyBytes_CheckExact(der) || !ak_pck_certificate_read((const uint8_t *)PyBytes_AsString(der),
                                                             (size_t)PyBytes_Size(der), &found))
        Py_RETURN_NONE;
    PyObject *all = fields(&found), *made = NULL;
    if (all != NULL)
        made = PyObject_CallFunctionObjArgs(PyTuple_GetItem(self, 0), PyTuple_GetItem(self, 1), all,
                                            NULL);
    Py_XDECREF(all);
    return made;
}

static PyMethodDef reader = {"read_pck_certificate", read_pck_certificate, METH_O, NULL};

/* The function above, for a subclass of tuple. */
static PyObject *pck_reader(PyObject *module, PyObject *class)
{
    (void)module;
    PyObject *create = PyObject_GetAttrString((PyObject *)&PyTuple_Type, "__new__");
    PyObject *both = create == NULL ? NULL : PyTuple_Pack(2, create, class);
    PyObject *function = both == NULL ? NULL : PyCFunction_NewEx(&reader, both, NULL);
    Py_XDECREF(create);
    Py_XDECREF(both);
    return function;
}

static PyMethodDef functions[] = {
    {"pck_reader", pck_reader, METH_O, NULL},
    {0},
};

int ak_add_pck_objects(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
