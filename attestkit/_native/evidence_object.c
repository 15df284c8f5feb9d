/* Python functions that decode evidence of a TD. With 27 events it takes 5 us, and with the decoder
 * in Python 35 us (CPython 3.11, Sapphire Rapids). */
#include "ak_objects.h"

#include "ak.h"
#include "ak_evidence.h"

/* Numbers of the fields of the classes, which the decoders are given in this order. */
enum { EVIDENCE, TDX, STACK, WIRE_EVENT, RUNTIME_EVENT, CLASSES };
static const Py_ssize_t fields_of[CLASSES] = {2, 2, 4, 7, 3};

/* The evidence that is being decoded. */
typedef struct {
    const ak_evidence_codec *codec;
    ak_cursor at;
    PyObject *classes;
    ak_td_evidence td;
} reading;

/* Return an instance of a class. Takes the references to the fields, in any case. */
static PyObject *instance(const reading *r, int class, PyObject *const *fields)
{
    return ak_tuple((PyTypeObject *)PyTuple_GetItem(r->classes, class), fields, fields_of[class]);
}

static PyObject *bytes_of(ak_part part)
{
    return PyBytes_FromStringAndSize((const char *)part.p, (Py_ssize_t)part.size);
}

static PyObject *text_of(ak_part part)
{
    return PyUnicode_DecodeUTF8((const char *)part.p, (Py_ssize_t)part.size, NULL);
}

static PyObject *decoded(const ak_evidence_codec *codec, ak_part encoded)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)encoded.size);
    if (bytes != NULL)
        codec->decode(encoded, (uint8_t *)PyBytes_AsString(bytes));
    return bytes;
}

/* Return bytes of an event in the log, which may be in hex. */
static PyObject *logged_bytes(const ak_evidence_codec *codec, ak_part part)
{
    if (!codec->hex)
        return bytes_of(part);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)part.size / 2);
    if (bytes != NULL)
        (void)ak_hex_decode(part.p, part.size, (uint8_t *)PyBytes_AsString(bytes));
    return bytes;
}

static PyObject *none(void)
{
    Py_INCREF(Py_None);
    return Py_None;
}

static PyObject *wire_event(const reading *r, const ak_wire_event *e)
{
    PyObject *const fields[] = {
        PyLong_FromUnsignedLong(e->imr),
        PyLong_FromUnsignedLong(e->event_type),
        logged_bytes(r->codec, e->digest),
        text_of(e->name),
        logged_bytes(r->codec, e->payload),
        PyLong_FromUnsignedLong(e->version),
        e->preimage.p == NULL ? none() : text_of(e->preimage),
    };
    return instance(r, WIRE_EVENT, fields);
}

static PyObject *runtime_event(const reading *r, const ak_wire_event *e)
{
    PyObject *const fields[] = {text_of(e->name), bytes_of(e->payload),
                                PyLong_FromUnsignedLong(e->version)};
    return instance(r, RUNTIME_EVENT, fields);
}

typedef bool read_event(ak_cursor *c, ak_wire_event *event);
typedef PyObject *make_event(const reading *r, const ak_wire_event *event);

/* Return a tuple of events; NULL, perhaps without an exception, if one is malformed. */
static PyObject *events_of(reading *r, uint32_t count, read_event *read, make_event *make)
{
    PyObject *all = PyTuple_New((Py_ssize_t)count);
    for (Py_ssize_t i = 0; all != NULL && i < (Py_ssize_t)count; i++) {
        ak_wire_event e;
        PyObject *one = read(&r->at, &e) ? make(r, &e) : NULL;
        if (one == NULL || PyTuple_SetItem(all, i, one) != 0)
            Py_CLEAR(all);
    }
    return all;
}

/* Return the evidence. Takes the references to the events. */
static PyObject *evidence_of(const reading *r, PyObject *events, PyObject *runtime_events)
{
    PyObject *const tdx[] = {decoded(r->codec, r->td.quote), events};
    PyObject *const stack[] = {decoded(r->codec, r->td.report_data), runtime_events,
                               text_of(r->td.config), none()};
    PyObject *const evidence[] = {instance(r, TDX, tdx), instance(r, STACK, stack)};
    return instance(r, EVIDENCE, evidence);
}

/* Return evidence; NULL, perhaps without an exception, if it is left to the decoder in Python. */
static PyObject *read_evidence(reading *r)
{
    const ak_evidence_codec *codec = r->codec;
    PyObject *events = NULL, *runtime_events = NULL;
    if (codec->begin(&r->at, &r->td))
        events = events_of(r, r->td.events, codec->event, wire_event);
    if (events != NULL && codec->middle(&r->at, &r->td))
        runtime_events = events_of(r, r->td.runtime_events, codec->runtime_event, runtime_event);
    if (runtime_events != NULL && codec->finish(&r->at, &r->td))
        return evidence_of(r, events, runtime_events);
    Py_XDECREF(events);
    Py_XDECREF(runtime_events);
    return NULL;
}

/* Return the evidence, or None if it is left. A subclass of bytes may override slicing, which the
 * decoder in Python uses. */
static PyObject *decode(reading *r, PyObject *data)
{
    if (!PyBytes_CheckExact(data))
        Py_RETURN_NONE;
    r->at.p = (const uint8_t *)PyBytes_AsString(data);
    r->at.end = r->at.p + PyBytes_Size(data);
    PyObject *evidence = read_evidence(r);
    if (evidence != NULL || (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_MemoryError)))
        return evidence;
    PyErr_Clear();
    Py_RETURN_NONE;
}

static PyObject *decode_scale(PyObject *classes, PyObject *data)
{
    reading r = {.codec = &ak_evidence_scale, .classes = classes};
    return decode(&r, data);
}

static PyObject *decode_msgpack(PyObject *classes, PyObject *data)
{
    reading r = {.codec = &ak_evidence_msgpack, .classes = classes};
    return decode(&r, data);
}

/* Return evidence and collateral (bytes or None), or None if they are left. */
static PyObject *decode_cmw(PyObject *classes, PyObject *data)
{
    reading r = {.codec = &ak_evidence_cmw, .classes = classes};
    PyObject *evidence = decode(&r, data);
    if (evidence == NULL || evidence == Py_None)
        return evidence;
    PyObject *const both[] = {evidence, r.td.has_collateral ? bytes_of(r.td.collateral) : none()};
    return ak_tuple(&PyTuple_Type, both, 2);
}

static PyMethodDef decoders[] = {
    {"decode_scale", decode_scale, METH_O, NULL},
    {"decode_msgpack", decode_msgpack, METH_O, NULL},
    {"decode_cmw", decode_cmw, METH_O, NULL},
};

/* The three functions above; their `self` has the classes. */
static PyObject *evidence_decoders(PyObject *module, PyObject *classes)
{
    PyTypeObject *class[CLASSES];
    (void)module;
    if (!PyArg_ParseTuple(classes, "O!O!O!O!O!", &PyType_Type, &class[0], &PyType_Type, &class[1],
                          &PyType_Type, &class[2], &PyType_Type, &class[3], &PyType_Type,
                          &class[4]))
        return NULL;
    for (int i = 0; i < CLASSES; i++)
        if (!ak_is_tuple(class[i]))
            return NULL;
    return Py_BuildValue("NNN", PyCFunction_NewEx(&decoders[0], classes, NULL),
                         PyCFunction_NewEx(&decoders[1], classes, NULL),
                         PyCFunction_NewEx(&decoders[2], classes, NULL));
}

static PyMethodDef functions[] = {
    {"evidence_decoders", evidence_decoders, METH_VARARGS, NULL},
    {0},
};

int ak_add_evidence_objects(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
