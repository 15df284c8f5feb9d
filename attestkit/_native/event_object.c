/* The Python function that makes the events of a log of those in evidence, with the columns that
 * are replayed. */
#include "ak_objects.h"

#include <stdbool.h>
#include <string.h>

#include "ak.h"
#include "ak_cursor.h"

enum {
    WIRE_FIELDS = 7,
    FIELDS = 6,
    DIGEST = 48,
    NO_ACTION = 3,
    RUNTIME_EVENT = 0x08000001,
    RUNTIME_REGISTER = 3,
    MAX_EVENTS = 65536,
    MAX_PREIMAGES = 1 << 24 /* bytes of the preimages, which are concatenated */
};

/* Type and colon before the name in the preimage of a runtime event. */
static const uint8_t type[] = {0x01, 0x00, 0x00, 0x08, ':'};

typedef struct {
    PyObject *field[WIRE_FIELDS]; /* borrowed from the tuple */
    uint8_t imr;
    bool is_runtime, extends;
    ak_part digest, name, payload;
} event;

/* The events of a log. */
typedef struct {
    event *events;
    Py_ssize_t count, extending, runtimes;
    size_t size; /* of the preimages */
} event_list;

static bool bytes_in(PyObject *object, ak_part *part)
{
    if (!PyBytes_CheckExact(object))
        return false;
    *part = (ak_part){(const uint8_t *)PyBytes_AsString(object), (size_t)PyBytes_Size(object)};
    return true;
}

/* Get the UTF-8 of text; false, with an exception, if it has a lone surrogate. */
static bool text_in(PyObject *object, ak_part *part)
{
    Py_ssize_t size = 0;
    if (!PyUnicode_CheckExact(object))
        return false;
    part->p = (const uint8_t *)PyUnicode_AsUTF8AndSize(object, &size);
    part->size = (size_t)size;
    return part->p != NULL;
}

/* Get a number; -1 if it is not an int, or too large. */
static long long number_in(PyObject *object)
{
    int overflow;
    return PyLong_CheckExact(object) ? PyLong_AsLongLongAndOverflow(object, &overflow) : -1;
}

/* Return whether an event is of version 1, and in a register where its type may be: RTMR3 has all
 * runtime events, and no others that extend it. */
static bool read_event(PyObject *wire, event *e)
{
    if (!PyTuple_Check(wire) || PyTuple_Size(wire) != WIRE_FIELDS)
        return false;
    for (Py_ssize_t i = 0; i < WIRE_FIELDS; i++)
        e->field[i] = PyTuple_GetItem(wire, i);
    const long long imr = number_in(e->field[0]), number = number_in(e->field[1]);
    if (imr < 0 || imr > 3 || number < 0 || number > UINT32_MAX || number_in(e->field[5]) != 1 ||
        !bytes_in(e->field[2], &e->digest) || !text_in(e->field[3], &e->name) ||
        !bytes_in(e->field[4], &e->payload))
        return false;
    e->imr = (uint8_t)imr;
    e->is_runtime = number == RUNTIME_EVENT;
    e->extends = number != NO_ACTION;
    if (e->extends && e->is_runtime != (imr == RUNTIME_REGISTER))
        return false;
    return e->digest.size == DIGEST || (e->is_runtime && e->digest.size == 0);
}

static bool read_events(event_list *all, PyObject *wire)
{
    for (Py_ssize_t i = 0; i < all->count; i++) {
        event *e = &all->events[i];
        if (!read_event(PyTuple_GetItem(wire, i), e))
            return false;
        all->extending += e->extends;
        if (!e->is_runtime)
            continue;
        if (e->name.size > MAX_PREIMAGES || e->payload.size > MAX_PREIMAGES ||
            memchr(e->name.p, ':', e->name.size) != NULL)
            return false;
        all->runtimes++;
        all->size += sizeof type + e->name.size + 1 + e->payload.size;
        if (all->size > MAX_PREIMAGES)
            return false;
    }
    return true;
}

/* Write the preimages of the runtime events, and hash them. `sizes` precedes the preimages. */
static void hash_preimages(const event_list *all, uint8_t *digests, uint32_t *sizes)
{
    uint8_t *const preimages = (uint8_t *)(sizes + all->runtimes), *at = preimages;
    for (Py_ssize_t i = 0, found = 0; i < all->count; i++) {
        const event *e = &all->events[i];
        if (!e->is_runtime)
            continue;
        uint8_t *const name = at + sizeof type, *const payload = name + e->name.size + 1;
        memcpy(at, type, sizeof type);
        memcpy(name, e->name.p, e->name.size);
        payload[-1] = ':';
        memcpy(payload, e->payload.p, e->payload.size);
        at = payload + e->payload.size;
        sizes[found++] = (uint32_t)(at - name + (ptrdiff_t)sizeof type);
    }
    ak_sha384_many(preimages, NULL, sizes, (size_t)all->runtimes, digests);
}

/* Result for a list of events: four objects, the last two of them columns. */
typedef struct {
    PyObject *events, *runtime, *registers, *digests;
    uint8_t *register_at, *digest_at;
} made_log;

static PyObject *new_column(Py_ssize_t size, uint8_t **start)
{
    PyObject *column = PyBytes_FromStringAndSize(NULL, size);
    if (column != NULL)
        *start = (uint8_t *)PyBytes_AsString(column);
    return column;
}

static bool begin(made_log *log, const event_list *all)
{
    log->events = PyTuple_New(all->count);
    log->runtime = PyTuple_New(all->runtimes);
    log->registers = new_column(all->extending, &log->register_at);
    log->digests = new_column(DIGEST * all->extending, &log->digest_at);
    return log->events != NULL && log->runtime != NULL && log->registers != NULL &&
           log->digests != NULL;
}

/* Return an event with this digest; a received one is reused. */
static PyObject *event_of(PyTypeObject *class, const event *e, const uint8_t *digest)
{
    PyObject *const bytes =
        e->digest.size == 0 ? PyBytes_FromStringAndSize((const char *)digest, DIGEST) : e->field[2];
    PyObject *const fields[] = {e->field[0], e->field[1], bytes,
                                e->field[3], e->field[4], e->field[5]};
    for (Py_ssize_t i = 0; i < FIELDS; i++)
        if (i != 2 || e->digest.size != 0)
            Py_INCREF(fields[i]);
    return ak_tuple(class, fields, FIELDS);
}

/* Add the events. Returns false, perhaps without an exception, if a received digest is not that of
 * name and payload. */
static bool fill(made_log *log, PyTypeObject *class, const event_list *all, const uint8_t *computed)
{
    for (Py_ssize_t i = 0, runtimes = 0; i < all->count; i++) {
        const event *e = &all->events[i];
        const uint8_t *const digest = e->is_runtime ? computed + DIGEST * runtimes : e->digest.p;
        if (e->digest.size != 0 && memcmp(digest, e->digest.p, DIGEST) != 0)
            return false;
        PyObject *one = event_of(class, e, digest);
        if (one == NULL || PyTuple_SetItem(log->events, i, one) != 0)
            return false;
        if (e->is_runtime) {
            Py_INCREF(one);
            if (PyTuple_SetItem(log->runtime, runtimes++, one) != 0)
                return false;
        }
        if (e->extends) {
            *log->register_at++ = e->imr;
            memcpy(log->digest_at, digest, DIGEST);
            log->digest_at += DIGEST;
        }
    }
    return true;
}

/* Return the four objects; NULL, perhaps without an exception, if the events are left. */
static PyObject *make_log(PyTypeObject *class, const event_list *all)
{
    const size_t digests = DIGEST * (size_t)all->runtimes,
                 sizes = sizeof(uint32_t) * (size_t)all->runtimes;
    uint8_t *room = PyMem_Malloc(digests + sizes + all->size);
    if (room == NULL)
        return PyErr_NoMemory();
    PyThreadState *thread = ak_release_gil_for(all->size);
    hash_preimages(all, room, (uint32_t *)(void *)(room + digests));
    ak_take_gil(thread);
    made_log log;
    PyObject *found = NULL;
    if (begin(&log, all) && fill(&log, class, all, room))
        found = PyTuple_Pack(4, log.events, log.runtime, log.registers, log.digests);
    Py_XDECREF(log.events);
    Py_XDECREF(log.runtime);
    Py_XDECREF(log.registers);
    Py_XDECREF(log.digests);
    PyMem_Free(room);
    return found;
}

/* Make the log of a tuple of events; None for events that are left to Python code, which is all
 * that are not valid, and those that need a warning or more than a check of their register. */
static PyObject *make_events(PyObject *class, PyObject *wire)
{
    if (!PyTuple_CheckExact(wire) || PyTuple_Size(wire) > MAX_EVENTS)
        Py_RETURN_NONE;
    event_list all = {.count = PyTuple_Size(wire)};
    all.events = PyMem_Malloc((size_t)all.count * sizeof *all.events);
    if (all.events == NULL)
        return PyErr_NoMemory();
    PyObject *found = NULL;
    if (read_events(&all, wire))
        found = make_log((PyTypeObject *)class, &all);
    PyMem_Free(all.events);
    if (found != NULL || (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_MemoryError)))
        return found;
    PyErr_Clear();
    Py_RETURN_NONE;
}

static PyMethodDef maker = {"make_events", make_events, METH_O, NULL};

/* The function above; its `self` is the class of events. */
static PyObject *event_maker(PyObject *module, PyObject *class)
{
    (void)module;
    if (!PyType_Check(class)) {
        PyErr_SetString(PyExc_TypeError, "the class of events is a class");
        return NULL;
    }
    return ak_is_tuple((PyTypeObject *)class) ? PyCFunction_NewEx(&maker, class, NULL) : NULL;
}

static PyMethodDef functions[] = {
    {"event_maker", event_maker, METH_O, NULL},
    {0},
};

int ak_add_event_objects(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
