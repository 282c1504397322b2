/* What runs around every forward and every stop check, in C: optional, and the same as capture/forward.py to the letter.
 *
 * Between two passes a model has pushed our code and objects out of the caches, so what tracing costs is the number of
 * distinct cache lines it touches, not the number of instructions. Here a pass touches two structs, one row and a few
 * hundred bytes of machine code; in Python it is bytecode, dictionaries, integers and frames.
 *
 * All that is not the plain next pass stays in Python and is called from here. A fault of ours goes to `step_aside`, and
 * what lies below is called exactly once whatever happens; an exception of the user's passes through untouched.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <time.h>

#if defined(CLOCK_MONOTONIC) && defined(CLOCK_THREAD_CPUTIME_ID) && !defined(_WIN32)
#define HAS_CLOCKS 1
#else
#define HAS_CLOCKS 0
#endif

/* These stand in capture/frames.py; the tests compare them. */
enum {
    INTERFACE = 2, /* raised with every change of what Python sees, so that a stale build is not used */
    WIDTH = 14,
    CHUNK_END = 64 * WIDTH,
    UNREADABLE = -1,
    SLOW_PASS_NS = 2000000,
    CPU_GROUP = 7,
    STEADY = 4 | 8 | 16,
    ASSISTANT = 64,
    ABORTED = 256,
    ENCODE = 1024,
    MARK_STOP = 1,
    LEFT = 3
};

static PyObject *str_call, *str_input_ids, *str_past_key_values, *str_logits_to_keep, *str_shape, *str_look;
static PyObject *str_next_chunk, *str_begin, *str_end, *str_marks, *str_append;
static PyObject *system_now_ns, *system_cpu_ns; /* Python's functions, where they read what clock_gettime reads */
static PyObject *array_type;

/* ---- Request: the part of a request that a pass touches ------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    long long *cells; /* the memory of `rows`, which cannot move while `view` is held; NULL where it is no array("q") */
    Py_ssize_t room;  /* how many there are */
    Py_ssize_t row;
    int in_pass;
    char dead;
    char viewed;
    PyObject *rows;
    Py_buffer view;
} Request;

static PyTypeObject Request_Type;

static void
Request_release(Request *self)
{
    self->cells = NULL;
    self->room = 0;
    if (self->viewed) {
        self->viewed = 0;
        PyBuffer_Release(&self->view);
    }
}

static int
Request_set_rows(Request *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "rows cannot be deleted");
        return -1;
    }
    PyObject *before = self->rows;
    Py_INCREF(value);
    self->rows = value;
    Request_release(self);
    /* Anything else is kept, and is a fault when it is to be written to. */
    if ((PyObject *)Py_TYPE(value) == array_type) {
        if (PyObject_GetBuffer(value, &self->view, PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_ND) < 0) {
            Py_XDECREF(before);
            return -1;
        }
        self->viewed = 1;
        if (self->view.format != NULL && strcmp(self->view.format, "q") == 0) {
            self->cells = self->view.buf;
            self->room = self->view.len / (Py_ssize_t)sizeof(long long);
        }
    }
    Py_XDECREF(before);
    return 0;
}

static PyObject *
Request_get_rows(Request *self, void *Py_UNUSED(closure))
{
    PyObject *rows = self->rows == NULL ? Py_None : self->rows;
    Py_INCREF(rows);
    return rows;
}

static PyObject *
Request_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    return type->tp_alloc(type, 0); /* zeros: no rows, not in a pass, not dead */
}

static int
Request_traverse(Request *self, visitproc visit, void *arg)
{
    Py_VISIT(self->rows);
    if (self->viewed) {
        Py_VISIT(self->view.obj);
    }
    return 0;
}

static int
Request_clear(Request *self)
{
    Request_release(self);
    Py_CLEAR(self->rows);
    return 0;
}

static void
Request_dealloc(Request *self)
{
    PyObject_GC_UnTrack(self);
    Request_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMemberDef Request_members[] = {
    {"row", T_PYSSIZET, offsetof(Request, row), 0, NULL},
    {"in_pass", T_INT, offsetof(Request, in_pass), 0, NULL},
    {"dead", T_BOOL, offsetof(Request, dead), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef Request_getset[] = {
    {"rows", (getter)Request_get_rows, (setter)Request_set_rows, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject Request_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "inferscope._hot.Request",
    .tp_basicsize = sizeof(Request),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "The part of a request that a pass touches.",
    .tp_new = Request_new,
    .tp_dealloc = (destructor)Request_dealloc,
    .tp_traverse = (traverseproc)Request_traverse,
    .tp_clear = (inquiry)Request_clear,
    .tp_members = Request_members,
    .tp_getset = Request_getset,
};

/* ---- Frame: the part of a frame that a pass touches ----------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *request;
    PyObject *module;
    PyObject *summed;
    PyObject *meter;
    unsigned long thread;
    long long past;
    long long seen;
    long long flags;
    char slow;
    char system_now; /* whether `now_ns` is the system's, so that it need not be called */
    char system_cpu;
    PyObject *now_ns;
    PyObject *thread_cpu_ns;
} Frame;

static PyTypeObject Frame_Type;

static PyObject *
Frame_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Frame *self = (Frame *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    PyObject **each[] = {&self->request, &self->module, &self->summed, &self->meter, &self->now_ns, &self->thread_cpu_ns};
    for (size_t i = 0; i < sizeof(each) / sizeof(each[0]); i++) {
        Py_INCREF(Py_None);
        *each[i] = Py_None;
    }
    return (PyObject *)self;
}

static int
Frame_traverse(Frame *self, visitproc visit, void *arg)
{
    Py_VISIT(self->request);
    Py_VISIT(self->module);
    Py_VISIT(self->summed);
    Py_VISIT(self->meter);
    Py_VISIT(self->now_ns);
    Py_VISIT(self->thread_cpu_ns);
    return 0;
}

static int
Frame_clear(Frame *self)
{
    self->system_now = self->system_cpu = 0;
    Py_CLEAR(self->request);
    Py_CLEAR(self->module);
    Py_CLEAR(self->summed);
    Py_CLEAR(self->meter);
    Py_CLEAR(self->now_ns);
    Py_CLEAR(self->thread_cpu_ns);
    return 0;
}

static void
Frame_dealloc(Frame *self)
{
    PyObject_GC_UnTrack(self);
    Frame_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int
Frame_set_clock(Frame *self, PyObject *value, PyObject **place, char *is_system, PyObject *system)
{
    (void)self;
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "a clock cannot be deleted");
        return -1;
    }
    PyObject *before = *place;
    Py_INCREF(value);
    *place = value;
    *is_system = value == system;
    Py_XDECREF(before);
    return 0;
}

static int
Frame_set_now(Frame *self, PyObject *value, void *Py_UNUSED(closure))
{
    return Frame_set_clock(self, value, &self->now_ns, &self->system_now, system_now_ns);
}

static int
Frame_set_cpu(Frame *self, PyObject *value, void *Py_UNUSED(closure))
{
    return Frame_set_clock(self, value, &self->thread_cpu_ns, &self->system_cpu, system_cpu_ns);
}

static PyObject *
Frame_get_clock(Frame *self, void *closure)
{
    PyObject *clock = closure == NULL ? self->now_ns : self->thread_cpu_ns;
    if (clock == NULL) {
        clock = Py_None;
    }
    Py_INCREF(clock);
    return clock;
}

static PyMemberDef Frame_members[] = {
    {"request", T_OBJECT_EX, offsetof(Frame, request), 0, NULL},
    {"module", T_OBJECT_EX, offsetof(Frame, module), 0, NULL},
    {"summed", T_OBJECT_EX, offsetof(Frame, summed), 0, NULL},
    {"meter", T_OBJECT_EX, offsetof(Frame, meter), 0, NULL},
    {"thread", T_ULONG, offsetof(Frame, thread), 0, NULL},
    {"past", T_LONGLONG, offsetof(Frame, past), 0, NULL},
    {"seen", T_LONGLONG, offsetof(Frame, seen), 0, NULL},
    {"flags", T_LONGLONG, offsetof(Frame, flags), 0, NULL},
    {"slow", T_BOOL, offsetof(Frame, slow), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef Frame_getset[] = {
    {"now_ns", (getter)Frame_get_clock, (setter)Frame_set_now, NULL, NULL},
    {"thread_cpu_ns", (getter)Frame_get_clock, (setter)Frame_set_cpu, NULL, (void *)1},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject Frame_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "inferscope._hot.Frame",
    .tp_basicsize = sizeof(Frame),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "The part of a frame that a pass touches.",
    .tp_new = Frame_new,
    .tp_dealloc = (destructor)Frame_dealloc,
    .tp_traverse = (traverseproc)Frame_traverse,
    .tp_clear = (inquiry)Frame_clear,
    .tp_members = Frame_members,
    .tp_getset = Frame_getset,
};

static inline int
is_frame(PyObject *object)
{
    return object != NULL && PyObject_TypeCheck(object, &Frame_Type);
}

static inline int
is_request(PyObject *object)
{
    return object != NULL && PyObject_TypeCheck(object, &Request_Type);
}

/* ---- Clocks, faults, shapes ----------------------------------------------------------------------------------- */

#if HAS_CLOCKS
static inline long long
read_clock(clockid_t which)
{
    struct timespec now;
    clock_gettime(which, &now);
    return (long long)now.tv_sec * 1000000000LL + now.tv_nsec;
}
#endif

/* The integer that a function returns; -1 with an exception set where there is none. */
static int
call_for_integer(PyObject *function, long long *value)
{
    if (function == NULL) {
        PyErr_SetString(PyExc_AttributeError, "the frame has no clock");
        return -1;
    }
    Py_INCREF(function);
    PyObject *answer = PyObject_CallNoArgs(function);
    Py_DECREF(function);
    if (answer == NULL) {
        return -1;
    }
    *value = PyLong_AsLongLong(answer);
    Py_DECREF(answer);
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

static inline int
now_ns(Frame *frame, long long *value)
{
#if HAS_CLOCKS
    if (frame->system_now) {
        *value = read_clock(CLOCK_MONOTONIC);
        return 0;
    }
#endif
    return call_for_integer(frame->now_ns, value);
}

static inline int
thread_cpu_ns(Frame *frame, long long *value)
{
#if HAS_CLOCKS
    if (frame->system_cpu) {
        *value = read_clock(CLOCK_THREAD_CPUTIME_ID);
        return 0;
    }
#endif
    return call_for_integer(frame->thread_cpu_ns, value);
}

/* An exception that is put aside while something of ours runs. */
typedef struct {
    PyObject *type, *value, *trace;
} Aside;

static void
put_aside(Aside *aside)
{
#if PY_VERSION_HEX >= 0x030C0000
    aside->type = aside->trace = NULL;
    aside->value = PyErr_GetRaisedException();
#else
    PyErr_Fetch(&aside->type, &aside->value, &aside->trace);
#endif
}

static void
take_back(Aside *aside)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(aside->value);
#else
    PyErr_Restore(aside->type, aside->value, aside->trace);
#endif
}

/* The exception itself, with its traceback; a new reference. */
static PyObject *
exception_of(Aside *aside)
{
#if PY_VERSION_HEX < 0x030C0000
    PyErr_NormalizeException(&aside->type, &aside->value, &aside->trace);
    if (aside->trace != NULL) {
        PyException_SetTraceback(aside->value, aside->trace);
    }
    Py_CLEAR(aside->type);
    Py_CLEAR(aside->trace);
#endif
    PyObject *value = aside->value;
    aside->value = NULL;
    return value;
}

/* The exception that is set was raised while the one put aside was under way: as Python would chain them. */
static void
chain(Aside *before)
{
    Aside now;
    put_aside(&now);
    PyObject *raised = exception_of(&now), *context = exception_of(before);
    if (raised != context) {
        PyException_SetContext(raised, context); /* steals */
    }
    else {
        Py_XDECREF(context);
    }
    Aside again = {NULL, NULL, NULL};
    again.value = raised;
#if PY_VERSION_HEX < 0x030C0000
    again.type = (PyObject *)Py_TYPE(raised);
    Py_INCREF(again.type);
    again.trace = PyException_GetTraceback(raised);
#endif
    take_back(&again);
}

/* Hand a fault of ours over; -1 where it is not ours to catch, or is raised again. */
static int
faulted(PyObject *step_aside, PyObject *frame)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    Aside aside;
    put_aside(&aside);
    PyObject *error = exception_of(&aside);
    PyObject *done = PyObject_CallFunctionObjArgs(step_aside, frame, error, NULL);
    Py_DECREF(error);
    if (done == NULL) {
        return -1;
    }
    Py_DECREF(done);
    return 0;
}

/* `one, other = pair`, of two integers. */
static int
unpack_two(PyObject *pair, long long *one, long long *other)
{
    PyObject *both = PyTuple_Check(pair) ? (Py_INCREF(pair), pair) : PySequence_Tuple(pair);
    if (both == NULL) {
        return -1;
    }
    if (PyTuple_GET_SIZE(both) != 2) {
        PyErr_Format(PyExc_ValueError, "expected 2 values, got %zd", PyTuple_GET_SIZE(both));
        Py_DECREF(both);
        return -1;
    }
    *one = PyLong_AsLongLong(PyTuple_GET_ITEM(both, 0));
    if (!(*one == -1 && PyErr_Occurred())) {
        *other = PyLong_AsLongLong(PyTuple_GET_ITEM(both, 1));
    }
    Py_DECREF(both);
    return PyErr_Occurred() ? -1 : 0;
}

/* The value of a keyword; NULL where it is not there, or with an exception set. A new reference. */
static PyObject *
keyword(PyObject *kwargs, PyObject *name)
{
    PyObject *value = PyDict_GetItemWithError(kwargs, name);
    Py_XINCREF(value);
    return value;
}

static int
shape_by_frame(PyObject *frame, PyObject *args, PyObject *kwargs, long long *batch, long long *q)
{
    PyObject *stack[] = {frame, args, kwargs};
    PyObject *shape = PyObject_VectorcallMethod(str_shape, stack, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    if (shape == NULL) {
        return -1;
    }
    int done = unpack_two(shape, batch, q);
    Py_DECREF(shape);
    return done;
}

static int
shape_of(PyObject *frame, PyObject *args, PyObject *kwargs, long long *batch, long long *q)
{
    PyObject *ids = keyword(kwargs, str_input_ids);
    if (ids == NULL && PyErr_Occurred()) {
        return -1;
    }
    int done;
    if (ids == NULL || ids == Py_None) {
        done = shape_by_frame(frame, args, kwargs, batch, q);
    }
    else {
        PyObject *shape = PyObject_GetAttr(ids, str_shape);
        done = shape == NULL ? -1 : unpack_two(shape, batch, q);
        Py_XDECREF(shape);
    }
    Py_XDECREF(ids);
    if (done < 0 && PyErr_ExceptionMatches(PyExc_ValueError)) { /* several codes per token */
        PyErr_Clear();
        done = shape_by_frame(frame, args, kwargs, batch, q);
    }
    return done;
}

static int
call_meter(PyObject *meter, PyObject *name)
{
    PyObject *stack[] = {meter};
    PyObject *done = PyObject_VectorcallMethod(name, stack, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static int
not_a(const char *what, PyObject *object)
{
    PyErr_Format(PyExc_TypeError, "expected a %s, not %.100s", what, object == NULL ? "nothing" : Py_TYPE(object)->tp_name);
    return -1;
}

/* ---- Watch: around a forward ---------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *below;
    PyObject *current;
    PyObject *other_frame;
    PyObject *encoded;
    PyObject *step_aside;
} Watch;

/* A pass under way: what its row will say, and whose it is. */
typedef struct {
    Request *request; /* owned from where the pass begins */
    PyObject *meter;  /* the same; NULL where there is none */
    long long entered, started, q, past, batch, logits, flags, cpu;
} Pass;

static PyObject *
call_below(Watch *watch, PyObject *self, PyObject *args, PyObject *kwargs)
{
    PyObject *function = PyObject_GetAttr(watch->below, str_call);
    if (function == NULL) {
        return NULL;
    }
    Py_ssize_t size = PyTuple_GET_SIZE(args);
    PyObject *whole = PyTuple_New(size + 1);
    if (whole == NULL) {
        Py_DECREF(function);
        return NULL;
    }
    Py_INCREF(self);
    PyTuple_SET_ITEM(whole, 0, self);
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *each = PyTuple_GET_ITEM(args, i);
        Py_INCREF(each);
        PyTuple_SET_ITEM(whole, i + 1, each);
    }
    PyObject *result = PyObject_Call(function, whole, kwargs);
    Py_DECREF(whole);
    Py_DECREF(function);
    return result;
}

/* Flags and cached tokens: the plain next pass on the frame's cache is counted here, all others by the frame. */
static int
look(Frame *frame, PyObject *kwargs, Pass *pass)
{
    PyObject *cache = keyword(kwargs, str_past_key_values);
    if (cache == NULL && PyErr_Occurred()) {
        return -1;
    }
    if (cache != NULL && cache != Py_None && cache == frame->summed) {
        pass->flags = frame->flags | STEADY;
        pass->past = frame->past;
        frame->past += pass->q;
        Py_DECREF(cache);
        return 0;
    }
    PyObject *q = PyLong_FromLongLong(pass->q);
    PyObject *stack[] = {(PyObject *)frame, cache == NULL ? Py_None : cache, kwargs, q};
    PyObject *seen =
        q == NULL ? NULL : PyObject_VectorcallMethod(str_look, stack, 4 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(q);
    Py_XDECREF(cache);
    if (seen == NULL) {
        return -1;
    }
    int done = unpack_two(seen, &pass->flags, &pass->past);
    Py_DECREF(seen);
    return done;
}

/* How many positions become logits. */
static int
count_logits(PyObject *kwargs, Pass *pass)
{
    pass->logits = pass->q;
    if (pass->q == 1) {
        return 0;
    }
    PyObject *kept = keyword(kwargs, str_logits_to_keep);
    int done = kept == NULL && PyErr_Occurred() ? -1 : 0;
    if (kept != NULL && PyLong_CheckExact(kept)) {
        long long count = PyLong_AsLongLong(kept);
        if (count == -1 && PyErr_Occurred()) {
            done = -1;
        }
        else if (count > 0) {
            pass->logits = count;
        }
    }
    Py_XDECREF(kept);
    return done;
}

static int
begin_pass(PyObject *object, PyObject *args, PyObject *kwargs, Pass *pass)
{
    if (!is_frame(object)) {
        return not_a("frame", object);
    }
    Frame *frame = (Frame *)object;
    if (now_ns(frame, &pass->entered) < 0 || shape_of(object, args, kwargs, &pass->batch, &pass->q) < 0 ||
        look(frame, kwargs, pass) < 0 || count_logits(kwargs, pass) < 0) {
        return -1;
    }
    long long seen = frame->seen++;
    pass->cpu = UNREADABLE;
    if (!(seen > 1 && seen & CPU_GROUP && !frame->slow) && thread_cpu_ns(frame, &pass->cpu) < 0) {
        return -1;
    }
    if (!is_request(frame->request)) {
        return not_a("request", frame->request);
    }
    Py_INCREF(frame->request);
    pass->request = (Request *)frame->request;
    pass->request->in_pass = 1;
    if (frame->meter != NULL && frame->meter != Py_None) {
        Py_INCREF(frame->meter);
        pass->meter = frame->meter;
        if (call_meter(pass->meter, str_begin) < 0) {
            return -1;
        }
    }
    return now_ns(frame, &pass->started);
}

static int
check_room(Request *request, Py_ssize_t row, Py_ssize_t width)
{
    if (request->cells != NULL && row >= 0 && row <= request->room - width) {
        return 0;
    }
    PyErr_Format(PyExc_IndexError, "no room for a row at %zd of %zd", row, request->room);
    return -1;
}

static int
end_pass(Frame *frame, Pass *pass)
{
    long long ended, left;
    Request *request = pass->request;
    if (now_ns(frame, &ended) < 0 || (pass->meter != NULL && call_meter(pass->meter, str_end) < 0)) {
        return -1;
    }
    request->in_pass = 0;
    frame->slow = ended - pass->started > SLOW_PASS_NS;
    Py_ssize_t row = request->row;
    if (check_room(request, row, WIDTH) < 0) {
        return -1;
    }
    /* The rest is 0: the device's times and the stop check are written later. */
    long long values[WIDTH] = {pass->entered, pass->started, ended,       0,         pass->q, pass->past,
                               pass->batch,   pass->logits,  pass->flags, pass->cpu};
    memcpy(request->cells + row, values, sizeof(values));
    request->row = row + WIDTH;
    if (now_ns(frame, &left) < 0 || check_room(request, row, WIDTH) < 0) {
        return -1;
    }
    request->cells[row + LEFT] = left;
    if (row != CHUNK_END - WIDTH) {
        return 0;
    }
    PyObject *stack[] = {(PyObject *)request};
    PyObject *done = PyObject_VectorcallMethod(str_next_chunk, stack, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* The forward with a row about it; the frame is known to be its own. */
static PyObject *
record(Watch *watch, PyObject *frame, PyObject *self, PyObject *args, PyObject *kwargs)
{
    Pass pass = {0};
    PyObject *result = NULL;
    Aside users = {NULL, NULL, NULL};
    if (begin_pass(frame, args, kwargs, &pass) < 0) {
        if (faulted(watch->step_aside, frame) == 0) {
            result = call_below(watch, self, args, kwargs);
        }
    }
    else {
        result = call_below(watch, self, args, kwargs);
        if (result == NULL) {
            pass.flags |= ABORTED;
            put_aside(&users);
        }
        if (end_pass((Frame *)frame, &pass) < 0 && faulted(watch->step_aside, frame) < 0) {
            if (result == NULL) {
                chain(&users);
            }
            Py_CLEAR(result);
        }
        else if (result == NULL) {
            take_back(&users);
        }
    }
    /* An exception may be set: what is let go here must not run code that sees it. Both are still held elsewhere, or
     * their own deallocators keep it. */
    Py_XDECREF((PyObject *)pass.request);
    Py_XDECREF(pass.meter);
    return result;
}

static inline int
is_plain_next(PyObject *object, PyObject *self)
{
    if (!is_frame(object)) {
        return 0;
    }
    Frame *frame = (Frame *)object;
    return frame->module == self && is_request(frame->request) && !((Request *)frame->request)->in_pass &&
           frame->thread == PyThread_get_thread_ident();
}

static PyObject *
Watch_vectorcall(PyObject *object, PyObject *const *stack, size_t nargsf, PyObject *kwnames)
{
    Watch *watch = (Watch *)object;
    if (PyVectorcall_NARGS(nargsf) != 3 || (kwnames != NULL && PyTuple_GET_SIZE(kwnames) != 0) ||
        !PyTuple_Check(stack[1]) || !PyDict_Check(stack[2])) {
        PyErr_SetString(PyExc_TypeError, "expected (self, args, kwargs)");
        return NULL;
    }
    if (watch->below == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "called while it is collected");
        return NULL;
    }
    PyObject *self = stack[0], *args = stack[1], *kwargs = stack[2], *frame = NULL, *result;
    if (PyContextVar_Get(watch->current, Py_None, &frame) < 0) {
        return NULL;
    }
    if (!is_plain_next(frame, self)) {
        PyObject *other = PyObject_CallFunctionObjArgs(watch->other_frame, frame, self, NULL);
        Py_DECREF(frame);
        if (other == NULL) {
            return NULL;
        }
        frame = other;
        if (frame == Py_None) {
            Py_DECREF(frame);
            return call_below(watch, self, args, kwargs);
        }
        if (is_frame(frame) && ((Frame *)frame)->flags & ENCODE) {
            result = PyObject_CallFunctionObjArgs(watch->encoded, frame, watch->below, watch->step_aside, args, kwargs, NULL);
            Py_DECREF(frame);
            return result;
        }
    }
    result = record(watch, frame, self, args, kwargs);
    Py_DECREF(frame);
    return result;
}

static PyObject *
Watch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *below, *current, *other_frame, *encoded, *step_aside;
    static char *names[] = {"below", "current", "other_frame", "encoded", "step_aside", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!OOO:Watch", names, &below, &PyContextVar_Type, &current,
                                     &other_frame, &encoded, &step_aside)) {
        return NULL;
    }
    Watch *self = (Watch *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->vectorcall = Watch_vectorcall;
    self->below = (Py_INCREF(below), below);
    self->current = (Py_INCREF(current), current);
    self->other_frame = (Py_INCREF(other_frame), other_frame);
    self->encoded = (Py_INCREF(encoded), encoded);
    self->step_aside = (Py_INCREF(step_aside), step_aside);
    return (PyObject *)self;
}

static int
Watch_traverse(Watch *self, visitproc visit, void *arg)
{
    Py_VISIT(self->below);
    Py_VISIT(self->current);
    Py_VISIT(self->other_frame);
    Py_VISIT(self->encoded);
    Py_VISIT(self->step_aside);
    return 0;
}

static int
Watch_clear(Watch *self)
{
    Py_CLEAR(self->below);
    Py_CLEAR(self->current);
    Py_CLEAR(self->other_frame);
    Py_CLEAR(self->encoded);
    Py_CLEAR(self->step_aside);
    return 0;
}

static void
Watch_dealloc(Watch *self)
{
    PyObject_GC_UnTrack(self);
    Watch_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject Watch_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "inferscope._hot.Watch",
    .tp_basicsize = sizeof(Watch),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_doc = "Called with (self, args, kwargs): runs the forward below, and writes a row where it is a pass.",
    .tp_new = Watch_new,
    .tp_dealloc = (destructor)Watch_dealloc,
    .tp_traverse = (traverseproc)Watch_traverse,
    .tp_clear = (inquiry)Watch_clear,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Watch, vectorcall),
};

/* ---- StopCheck: around the stop check ------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *original;
    PyObject *current;
    PyObject *step_aside;
    PyObject *attributes; /* as functools.wraps leaves them */
} StopCheck;

/* Into the row of the pass before it, or as a mark where that has one already. */
static int
note_stop(Frame *frame, long long started)
{
    long long ended;
    if (!is_request(frame->request)) {
        return not_a("request", frame->request);
    }
    Request *request = (Request *)frame->request;
    Py_ssize_t row = request->row;
    if (row != 0) {
        if (check_room(request, row - WIDTH, WIDTH) < 0) {
            return -1;
        }
        if (request->cells[row - 1] == 0) {
            request->cells[row - 2] = started;
            if (now_ns(frame, &ended) < 0 || check_room(request, row - WIDTH, WIDTH) < 0) {
                return -1;
            }
            request->cells[row - 1] = ended;
            return 0;
        }
    }
    if (now_ns(frame, &ended) < 0) {
        return -1;
    }
    PyObject *marks = PyObject_GetAttr((PyObject *)request, str_marks);
    if (marks == NULL) {
        return -1;
    }
    PyObject *mark = Py_BuildValue("(iLL)", MARK_STOP, started, ended);
    PyObject *done = mark == NULL ? NULL : PyObject_CallMethodObjArgs(marks, str_append, mark, NULL);
    Py_XDECREF(mark);
    Py_DECREF(marks);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static PyObject *
StopCheck_vectorcall(PyObject *object, PyObject *const *stack, size_t nargsf, PyObject *kwnames)
{
    StopCheck *check = (StopCheck *)object;
    if (check->original == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "called while it is collected");
        return NULL;
    }
    PyObject *frame = NULL;
    if (PyContextVar_Get(check->current, Py_None, &frame) < 0) {
        return NULL;
    }
    long long started = 0;
    int watched = is_frame(frame) && !(((Frame *)frame)->flags & ASSISTANT);
    if (watched && now_ns((Frame *)frame, &started) < 0) {
        watched = 0;
        if (faulted(check->step_aside, frame) < 0) {
            Py_DECREF(frame);
            return NULL;
        }
    }
    PyObject *result = PyObject_Vectorcall(check->original, stack, nargsf, kwnames);
    if (watched) {
        Aside users = {NULL, NULL, NULL};
        if (result == NULL) {
            put_aside(&users);
        }
        if (note_stop((Frame *)frame, started) < 0 && faulted(check->step_aside, frame) < 0) {
            if (result == NULL) {
                chain(&users);
            }
            Py_CLEAR(result);
        }
        else if (result == NULL) {
            take_back(&users);
        }
    }
    Py_DECREF(frame);
    return result;
}

static PyObject *
StopCheck_get(PyObject *self, PyObject *instance, PyObject *Py_UNUSED(owner))
{
    if (instance == NULL || instance == Py_None) {
        Py_INCREF(self);
        return self;
    }
    return PyMethod_New(self, instance);
}

static PyObject *
StopCheck_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *original, *current, *step_aside;
    static char *names[] = {"original", "current", "step_aside", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!O:StopCheck", names, &original, &PyContextVar_Type, &current,
                                     &step_aside)) {
        return NULL;
    }
    StopCheck *self = (StopCheck *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->vectorcall = StopCheck_vectorcall;
    self->original = (Py_INCREF(original), original);
    self->current = (Py_INCREF(current), current);
    self->step_aside = (Py_INCREF(step_aside), step_aside);
    return (PyObject *)self;
}

static int
StopCheck_traverse(StopCheck *self, visitproc visit, void *arg)
{
    Py_VISIT(self->original);
    Py_VISIT(self->current);
    Py_VISIT(self->step_aside);
    Py_VISIT(self->attributes);
    return 0;
}

static int
StopCheck_clear(StopCheck *self)
{
    Py_CLEAR(self->original);
    Py_CLEAR(self->current);
    Py_CLEAR(self->step_aside);
    Py_CLEAR(self->attributes);
    return 0;
}

static void
StopCheck_dealloc(StopCheck *self)
{
    PyObject_GC_UnTrack(self);
    StopCheck_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyGetSetDef StopCheck_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject StopCheck_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "inferscope._hot.StopCheck",
    .tp_basicsize = sizeof(StopCheck),
    .tp_flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = StopCheck_new,
    .tp_dealloc = (destructor)StopCheck_dealloc,
    .tp_traverse = (traverseproc)StopCheck_traverse,
    .tp_clear = (inquiry)StopCheck_clear,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(StopCheck, vectorcall),
    .tp_descr_get = StopCheck_get,
    .tp_dictoffset = offsetof(StopCheck, attributes),
    .tp_getset = StopCheck_getset,
    .tp_getattro = PyObject_GenericGetAttr,
    .tp_setattro = PyObject_GenericSetAttr,
};

/* ---- The module ----------------------------------------------------------------------------------------------- */

/* Python's function, where what it reads is what `clock_gettime` reads with the clock of that name; else NULL. A new
 * reference; NULL with an exception set where the time module is not as it should be. */
static PyObject *
function_of_clock(PyObject *time, const char *name, const char *function, const char *expected)
{
    PyObject *info = PyObject_CallMethod(time, "get_clock_info", "s", name);
    PyObject *read = info == NULL ? NULL : PyObject_GetAttrString(info, "implementation");
    Py_XDECREF(info);
    if (read == NULL) {
        return NULL;
    }
    int same = HAS_CLOCKS && PyUnicode_Check(read) && PyUnicode_CompareWithASCIIString(read, expected) == 0;
    Py_DECREF(read);
    return same ? PyObject_GetAttrString(time, function) : NULL;
}

static int
find_clocks(void)
{
    PyObject *time = PyImport_ImportModule("time");
    if (time == NULL) {
        return -1;
    }
    system_now_ns = function_of_clock(time, "perf_counter", "perf_counter_ns", "clock_gettime(CLOCK_MONOTONIC)");
    if (!PyErr_Occurred()) {
        system_cpu_ns = function_of_clock(time, "thread_time", "thread_time_ns", "clock_gettime(CLOCK_THREAD_CPUTIME_ID)");
    }
    Py_DECREF(time);
    return PyErr_Occurred() ? -1 : 0;
}

static int
find_array(void)
{
    PyObject *module = PyImport_ImportModule("array");
    if (module == NULL) {
        return -1;
    }
    array_type = PyObject_GetAttrString(module, "array");
    Py_DECREF(module);
    return array_type == NULL ? -1 : 0;
}

static int
make_names(void)
{
    struct {
        PyObject **place;
        const char *name;
    } each[] = {
        {&str_call, "__call__"},
        {&str_input_ids, "input_ids"},
        {&str_past_key_values, "past_key_values"},
        {&str_logits_to_keep, "logits_to_keep"},
        {&str_shape, "shape"},
        {&str_look, "look"},
        {&str_next_chunk, "next_chunk"},
        {&str_begin, "begin"},
        {&str_end, "end"},
        {&str_marks, "marks"},
        {&str_append, "append"},
    };
    for (size_t i = 0; i < sizeof(each) / sizeof(each[0]); i++) {
        *each[i].place = PyUnicode_InternFromString(each[i].name);
        if (*each[i].place == NULL) {
            return -1;
        }
    }
    return 0;
}

static int
add_constants(PyObject *module)
{
    PyObject *constants = Py_BuildValue(
        "{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}", "WIDTH", WIDTH, "CHUNK_END", CHUNK_END, "UNREADABLE", UNREADABLE,
        "SLOW_PASS_NS", SLOW_PASS_NS, "CPU_GROUP", CPU_GROUP, "STEADY", STEADY, "ASSISTANT", ASSISTANT, "ABORTED", ABORTED,
        "ENCODE", ENCODE, "MARK_STOP", MARK_STOP, "LEFT", LEFT);
    if (constants == NULL) {
        return -1;
    }
    int done = PyModule_AddObjectRef(module, "CONSTANTS", constants);
    Py_DECREF(constants);
    PyObject *direct = system_now_ns != NULL && system_cpu_ns != NULL ? Py_True : Py_False;
    return done < 0 || PyModule_AddObjectRef(module, "READS_CLOCKS", direct) < 0 ||
                   PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0
               ? -1
               : 0;
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "inferscope._hot",
    .m_doc = "What runs around every forward and every stop check.",
    .m_size = -1, /* one per process: an interpreter with a GIL of its own refuses it, and Python does the work there */
};

PyMODINIT_FUNC
PyInit__hot(void)
{
    PyTypeObject *types[] = {&Request_Type, &Frame_Type, &Watch_Type, &StopCheck_Type};
    if (make_names() < 0 || find_array() < 0 || find_clocks() < 0) {
        return NULL;
    }
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (PyModule_AddType(module, types[i]) < 0) {
            Py_DECREF(module);
            return NULL;
        }
    }
    if (add_constants(module) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
