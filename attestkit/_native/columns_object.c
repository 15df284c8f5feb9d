/* Columns of quotes, written directly into Python bytes objects. A column takes 0.3 us plus the
 * time of its rows, instead of 0.6 us if created in Python from a C function, and more through
 * cffi: a tenth of the total time of a batch of 1,000 quotes and eight fields. */
#include "ak_objects.h"

#include "ak_quote.h"

static uint8_t *start_of(PyObject *bytes)
{
    return (uint8_t *)PyBytes_AsString(bytes);
}

/* Check quotes at given offsets, or find their offsets. Returns 0, or -1 with an exception, which
 * the Python function `refuse` creates from a status and a quote number. */
static int check(PyObject *refuse, PyObject *data, ak_quote_rows *rows, bool given)
{
    ak_quote_place place;
    const size_t size = (size_t)PyBytes_Size(data);
    const ak_status status = given ? ak_quote_rows_given(start_of(data), size, rows, &place)
                                   : ak_quote_rows_found(start_of(data), size, rows, &place);
    if (status == AK_OK)
        return 0;
    PyObject *error = PyObject_CallFunction(refuse, "inK", (int)status, (Py_ssize_t)place.row,
                                            (unsigned long long)place.at);
    if (error != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    return -1;
}

/* Check quotes of TDs; return data, offsets, versions and body types. */
static PyObject *quote_rows(PyObject *refuse, PyObject *args)
{
    PyObject *data, *given, *found = NULL;
    if (!PyArg_ParseTuple(args, "SO", &data, &given))
        return NULL;
    const bool are_given = given != Py_None;
    if (are_given && !PyBytes_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "starts are bytes");
        return NULL;
    }
    const size_t count = are_given ? (size_t)PyBytes_Size(given) / 8
                                   : (size_t)PyBytes_Size(data) / AK_QUOTE_TD_MIN_SIZE;
    uint64_t *room = PyMem_Malloc(count * (sizeof *room + 2));
    if (room == NULL)
        return PyErr_NoMemory();
    uint8_t *versions = (uint8_t *)(room + count);
    ak_quote_rows rows = {room, versions, versions + count, count};
    if (are_given)
        memcpy(room, start_of(given), 8 * count);
    if (check(refuse, data, &rows, are_given) == 0)
        found = Py_BuildValue("Oy#y#y#", data, room, (Py_ssize_t)(8 * rows.count), rows.versions,
                              (Py_ssize_t)rows.count, rows.body_types, (Py_ssize_t)rows.count);
    PyMem_Free(room);
    return found;
}

static PyMethodDef checker = {"quote_rows", quote_rows, METH_VARARGS, NULL};

/* The function above; its `self` is the Python function that creates exceptions. */
static PyObject *quote_checker(PyObject *module, PyObject *refuse)
{
    (void)module;
    return PyCFunction_NewEx(&checker, refuse, NULL);
}

/* Descriptor of a column: one field of all quotes, or four adjacent ones, for a class whose
 * instances have the result of quote_rows in the attribute `_rows`. */
typedef struct {
    PyObject_HEAD;
    PyObject *name;
    PyObject *rows, *cast,
        *bytes;    /* "_rows", "cast", "B": not global, which all interpreters would share */
    Py_ssize_t at; /* offset in the body */
    Py_ssize_t width;
    Py_ssize_t count; /* 1 or 4 */
} column_object;

/* Unpack the result of quote_rows; returns -1 with an exception if it is another object. */
static int take_apart(PyObject *from, PyObject **data, ak_quote_rows *rows)
{
    PyObject *starts, *versions, *body_types;
    if (!PyArg_ParseTuple(from, "SSSS", data, &starts, &versions, &body_types))
        return -1;
    *rows = (ak_quote_rows){(uint64_t *)(void *)start_of(starts), start_of(versions),
                            start_of(body_types), (size_t)PyBytes_Size(versions)};
    if ((size_t)PyBytes_Size(starts) == 8 * rows->count &&
        (size_t)PyBytes_Size(body_types) == rows->count)
        return 0;
    PyErr_SetString(PyExc_ValueError, "rows have one length");
    return -1;
}

/* Create a bytes object with one column, or with four concatenated columns. */
static PyObject *gather(const column_object *c, PyObject *data, const ak_quote_rows *rows)
{
    const uint8_t *from = start_of(data);
    const size_t size = (size_t)PyBytes_Size(data), at = (size_t)c->at, width = (size_t)c->width;
    PyObject *block = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(rows->count * width) * c->count);
    if (block == NULL ||
        (c->count == 1 ? ak_quote_column(from, size, rows, at, width, start_of(block))
                       : ak_quote_four_columns(from, size, rows, at, start_of(block))))
        return block;
    PyErr_SetString(PyExc_ValueError, "these are no rows of these quotes, or no field");
    Py_DECREF(block);
    return NULL;
}

/* Replace a flat memoryview by one with rows; Python does not support the shape (0, width). */
static PyObject *with_rows(const column_object *c, PyObject *flat, PyObject *shape)
{
    PyObject *view = flat == NULL || PyObject_Size(flat) == 0
                         ? Py_XNewRef(flat)
                         : PyObject_CallMethodObjArgs(flat, c->cast, c->bytes, shape, NULL);
    Py_XDECREF(flat);
    return view;
}

/* Return the column, or a tuple of the four. */
static PyObject *make_columns(const column_object *c, PyObject *from)
{
    PyObject *data, *four[4] = {NULL};
    ak_quote_rows rows;
    if (take_apart(from, &data, &rows) != 0)
        return NULL;
    const Py_ssize_t count = (Py_ssize_t)rows.count, size = count * c->width;
    PyObject *block = gather(c, data, &rows);
    PyObject *flat = block == NULL ? NULL : PyMemoryView_FromObject(block);
    PyObject *shape = flat == NULL ? NULL : Py_BuildValue("nn", count, c->width);
    PyObject *found = NULL;
    if (shape != NULL && c->count == 1)
        found = with_rows(c, Py_NewRef(flat), shape);
    for (Py_ssize_t i = 0; shape != NULL && i < 4 && c->count == 4; i++)
        four[i] = with_rows(c, PySequence_GetSlice(flat, i * size, (i + 1) * size), shape);
    if (four[0] != NULL && four[1] != NULL && four[2] != NULL && four[3] != NULL)
        found = PyTuple_Pack(4, four[0], four[1], four[2], four[3]);
    for (size_t i = 0; i < 4; i++)
        Py_XDECREF(four[i]);
    Py_XDECREF(shape);
    Py_XDECREF(flat);
    Py_XDECREF(block);
    return found;
}

/* Store the result in the instance. Python then finds it there, because instance attributes take
 * precedence over descriptors without __set__. */
static PyObject *column_get(PyObject *self, PyObject *owner, PyObject *type)
{
    const column_object *c = (column_object *)self;
    (void)type;
    if (owner == NULL || owner == Py_None || c->name == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a column is one of certain quotes");
        return NULL;
    }
    PyObject *kept = PyObject_GenericGetDict(owner, NULL), *made = NULL;
    PyObject *rows = kept == NULL ? NULL : PyDict_GetItemWithError(kept, c->rows);
    if (rows != NULL && PyTuple_Check(rows))
        made = make_columns(c, rows);
    else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_AttributeError, "there are no quotes");
    if (made != NULL && PyDict_SetItem(kept, c->name, made) != 0)
        Py_CLEAR(made);
    Py_XDECREF(kept);
    return made;
}

static PyObject *column_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    Py_ssize_t at, width, count = 1;
    (void)names;
    if (!PyArg_ParseTuple(args, "nn|n", &at, &width, &count))
        return NULL;
    if (at < 0 || width < 0 || width > AK_QUOTE_TD_BODY_SIZE ||
        (count != 1 && (count != 4 || width != 48))) {
        PyErr_SetString(PyExc_ValueError, "fields come alone, or four of 48 bytes");
        return NULL;
    }
    column_object *c = (column_object *)PyType_GenericAlloc(type, 0);
    if (c == NULL)
        return NULL;
    c->at = at;
    c->width = width;
    c->count = count;
    c->rows = PyUnicode_InternFromString("_rows");
    c->cast = PyUnicode_InternFromString("cast");
    c->bytes = PyUnicode_InternFromString("B");
    if (c->rows == NULL || c->cast == NULL || c->bytes == NULL)
        Py_CLEAR(c);
    return (PyObject *)c;
}

static PyObject *column_set_name(PyObject *self, PyObject *args)
{
    column_object *c = (column_object *)self;
    PyObject *owner, *name;
    if (!PyArg_ParseTuple(args, "OU", &owner, &name))
        return NULL;
    Py_INCREF(name);
    PyObject *before = c->name;
    c->name = name;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static void column_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    const column_object *c = (column_object *)self;
    Py_XDECREF(c->name);
    Py_XDECREF(c->rows);
    Py_XDECREF(c->cast);
    Py_XDECREF(c->bytes);
    PyObject_Free(self);
    Py_DECREF((PyObject *)type);
}

static PyMethodDef column_methods[] = {
    {"__set_name__", column_set_name, METH_VARARGS, NULL},
    {0},
};

static PyType_Slot column_slots[] = {
    {Py_tp_new, (void *)column_new},
    {Py_tp_dealloc, (void *)column_dealloc},
    {Py_tp_descr_get, (void *)column_get},
    {Py_tp_methods, column_methods},
    {0, NULL},
};

static PyType_Spec column_spec = {
    .name = "attestkit._native._objects.Column",
    .basicsize = sizeof(column_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = column_slots,
};

static PyMethodDef functions[] = {
    {"quote_checker", quote_checker, METH_O, NULL},
    {0},
};

int ak_add_column_objects(PyObject *module)
{
    PyObject *column = PyType_FromSpec(&column_spec);
    if (column == NULL || PyModule_AddObject(module, "Column", column) != 0) {
        Py_XDECREF(column);
        return -1;
    }
    return PyModule_AddFunctions(module, functions);
}
