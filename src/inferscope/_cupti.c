/* Counts what the host asks of a CUDA driver: launches, graph launches, waits and copies, per thread. Optional.
 *
 * A subscriber of CUPTI's callback API whose callback adds one to a number of the calling thread and does nothing else:
 * no Python, no lock, no memory. CUPTI is opened when it is asked for, by the path that Python found, and the few types
 * it needs are written out here, so that neither NVIDIA's headers nor its libraries are needed to build this.
 *
 * The driver's functions are counted, not those of the runtime above it: whoever calls, through whatever entry point of
 * the runtime, ends there.
 *
 * Source of the numbers: cupti_driver_cbid.h and cupti_callbacks.h of CUDA 12.9 and 13.0, which agree.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stdint.h>

enum {
    INTERFACE = 1,
    DOMAIN_DRIVER = 1, /* CUPTI_CB_DOMAIN_DRIVER_API */
    SITE_ENTER = 0,    /* CUPTI_API_ENTER */
    IDS = 1024
};

enum kind { NOTHING, LAUNCH, GRAPH, WAIT, TO_HOST_WAITING, TO_HOST, TO_DEVICE };

static const struct {
    uint16_t id;
    uint8_t kind;
} table[] = {
    {307, LAUNCH},          /* cuLaunchKernel */
    {442, LAUNCH},          /* cuLaunchKernel_ptsz */
    {652, LAUNCH},          /* cuLaunchKernelEx */
    {653, LAUNCH},          /* cuLaunchKernelEx_ptsz */
    {477, LAUNCH},          /* cuLaunchCooperativeKernel */
    {478, LAUNCH},          /* cuLaunchCooperativeKernel_ptsz */
    {480, LAUNCH},          /* cuLaunchCooperativeKernelMultiDevice */
    {514, GRAPH},           /* cuGraphLaunch */
    {515, GRAPH},           /* cuGraphLaunch_ptsz */
    {126, WAIT},            /* cuStreamSynchronize */
    {440, WAIT},            /* cuStreamSynchronize_ptsz */
    {17, WAIT},             /* cuCtxSynchronize */
    {800, WAIT},            /* cuCtxSynchronize_v2 */
    {121, WAIT},            /* cuEventSynchronize */
    {45, TO_HOST_WAITING},  /* cuMemcpyDtoH */
    {278, TO_HOST_WAITING}, /* cuMemcpyDtoH_v2 */
    {398, TO_HOST_WAITING}, /* cuMemcpyDtoH_v2_ptds */
    {62, TO_HOST},          /* cuMemcpyDtoHAsync */
    {279, TO_HOST},         /* cuMemcpyDtoHAsync_v2 */
    {422, TO_HOST},         /* cuMemcpyDtoHAsync_v2_ptsz */
    {43, TO_DEVICE},        /* cuMemcpyHtoD */
    {276, TO_DEVICE},       /* cuMemcpyHtoD_v2 */
    {397, TO_DEVICE},       /* cuMemcpyHtoD_v2_ptds */
    {60, TO_DEVICE},        /* cuMemcpyHtoDAsync */
    {277, TO_DEVICE},       /* cuMemcpyHtoDAsync_v2 */
    {421, TO_DEVICE},       /* cuMemcpyHtoDAsync_v2_ptsz */
};
enum { TABLE = sizeof(table) / sizeof(table[0]) };

typedef struct {
    unsigned long long launches, graphs, waits, to_host, to_device;
} Counts;

typedef void (*Callback)(void *user, int domain, uint32_t id, const void *data);
typedef int (*SubscribeFn)(void **subscriber, Callback callback, void *user);
typedef int (*UnsubscribeFn)(void *subscriber);
typedef int (*EnableFn)(uint32_t enable, void *subscriber, int domain, uint32_t id);
typedef int (*ResultStringFn)(int result, const char **text);
typedef int (*VersionFn)(uint32_t *version);

static uint8_t kinds[IDS];
static __thread Counts mine;
static int counting; /* read by callbacks of any thread: one that comes late counts nothing */
static void *subscriber;
static int subscribed;

static SubscribeFn cupti_subscribe;
static UnsubscribeFn cupti_unsubscribe;
static EnableFn cupti_enable;
static ResultStringFn cupti_result_string;
static VersionFn cupti_version;

static void
on_call(void *Py_UNUSED(user), int domain, uint32_t id, const void *data)
{
    /* CUpti_CallbackData begins with the site. */
    if (domain != DOMAIN_DRIVER || id >= IDS || data == NULL || *(const int *)data != SITE_ENTER ||
        !__atomic_load_n(&counting, __ATOMIC_RELAXED)) {
        return;
    }
    switch (kinds[id]) {
    case LAUNCH:
        mine.launches++;
        break;
    case GRAPH:
        mine.graphs++;
        break;
    case WAIT:
        mine.waits++;
        break;
    case TO_HOST_WAITING:
        mine.waits++;
        mine.to_host++;
        break;
    case TO_HOST:
        mine.to_host++;
        break;
    case TO_DEVICE:
        mine.to_device++;
        break;
    default:
        break;
    }
}

static PyObject *
load(PyObject *Py_UNUSED(module), PyObject *arg)
{
    const char *path = PyUnicode_AsUTF8(arg);
    if (path == NULL) {
        return NULL;
    }
    if (subscribed) {
        PyErr_SetString(PyExc_RuntimeError, "a subscription is open");
        return NULL;
    }
    void *library;
    Py_BEGIN_ALLOW_THREADS
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    Py_END_ALLOW_THREADS
    if (library == NULL) {
        const char *why = dlerror();
        PyErr_SetString(PyExc_OSError, why == NULL ? "it cannot be loaded" : why);
        return NULL;
    }
    SubscribeFn subscribe_fn = (SubscribeFn)dlsym(library, "cuptiSubscribe");
    UnsubscribeFn unsubscribe_fn = (UnsubscribeFn)dlsym(library, "cuptiUnsubscribe");
    EnableFn enable_fn = (EnableFn)dlsym(library, "cuptiEnableCallback");
    if (subscribe_fn == NULL || unsubscribe_fn == NULL || enable_fn == NULL) {
        PyErr_SetString(PyExc_OSError, "it has no callback interface of CUPTI");
        return NULL; /* the library stays open: what is loaded once may have begun threads of its own */
    }
    cupti_subscribe = subscribe_fn;
    cupti_unsubscribe = unsubscribe_fn;
    cupti_enable = enable_fn;
    cupti_result_string = (ResultStringFn)dlsym(library, "cuptiGetResultString");
    cupti_version = (VersionFn)dlsym(library, "cuptiGetVersion");
    Py_RETURN_NONE;
}

static int
enable_all(void)
{
    int enabled = 0;
    for (int each = 0; each < TABLE; each++) {
        /* An older CUPTI refuses a number that it does not know: then there is nothing of it to count. */
        enabled += cupti_enable(1, subscriber, DOMAIN_DRIVER, table[each].id) == 0;
    }
    return enabled;
}

static PyObject *
subscribe(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    if (cupti_subscribe == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "no library was loaded");
        return NULL;
    }
    if (subscribed) {
        PyErr_SetString(PyExc_RuntimeError, "a subscription is open");
        return NULL;
    }
    int code, enabled = 0;
    Py_BEGIN_ALLOW_THREADS
    code = cupti_subscribe(&subscriber, on_call, NULL);
    if (code == 0) {
        enabled = enable_all();
        if (enabled == 0) {
            cupti_unsubscribe(subscriber);
        }
    }
    Py_END_ALLOW_THREADS
    subscribed = code == 0 && enabled > 0;
    __atomic_store_n(&counting, subscribed, __ATOMIC_RELAXED);
    return Py_BuildValue("(ii)", code, enabled);
}

static PyObject *
unsubscribe(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    if (!subscribed) {
        Py_RETURN_NONE;
    }
    subscribed = 0;
    __atomic_store_n(&counting, 0, __ATOMIC_RELAXED);
    Py_BEGIN_ALLOW_THREADS
    cupti_unsubscribe(subscriber);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *
forget(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    subscribed = 0; /* a forked child: CUDA does not work in it, and the subscription is the parent's */
    __atomic_store_n(&counting, 0, __ATOMIC_RELAXED);
    Py_RETURN_NONE;
}

static PyObject *
counts(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    return Py_BuildValue("(KKKKK)", mine.launches, mine.graphs, mine.waits, mine.to_host, mine.to_device);
}

static PyObject *
explain(PyObject *Py_UNUSED(module), PyObject *arg)
{
    long code = PyLong_AsLong(arg);
    if (code == -1 && PyErr_Occurred()) {
        return NULL;
    }
    const char *text = NULL;
    if (cupti_result_string == NULL || cupti_result_string((int)code, &text) != 0 || text == NULL) {
        return PyUnicode_FromFormat("error %ld of CUPTI", code);
    }
    return PyUnicode_FromFormat("%s (error %ld of CUPTI)", text, code);
}

static PyObject *
version(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    uint32_t number = 0;
    if (cupti_version == NULL || cupti_version(&number) != 0) {
        Py_RETURN_NONE;
    }
    return PyLong_FromUnsignedLong(number);
}

static PyMethodDef methods[] = {
    {"load", load, METH_O, "Open a libcupti by its path."},
    {"subscribe", subscribe, METH_NOARGS, "Begin to count: CUPTI's code (0: it counts), and how many ids it took."},
    {"unsubscribe", unsubscribe, METH_NOARGS, "End it; safe to call twice."},
    {"forget", forget, METH_NOARGS, "In a forked child: nothing is open here."},
    {"counts", counts, METH_NOARGS, "Of the calling thread: launches, graphs, waits, copies to host and to device."},
    {"explain", explain, METH_O, "A code of CUPTI in words."},
    {"version", version, METH_NOARGS, "CUPTI's number of its interface; None where it does not tell."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "inferscope._cupti", "Counts calls of a CUDA driver, per thread.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__cupti(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) {
        return NULL;
    }
    for (int each = 0; each < TABLE; each++) {
        kinds[table[each].id] = table[each].kind;
    }
    if (PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
