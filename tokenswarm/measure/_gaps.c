/* The gaps between the stamps of an answer, and their counts by bucket of a sketch: the plain case of measure/gaps.py,
 * value for value, at a fifth of its instructions. What is not plain (events of one stamp, a stamp that runs backwards,
 * numbers beyond 64 bits) gets None, and is left to Python. tests/test_gaps.py holds both against each other.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
enum { KEYS = 256 }; /* buckets that are counted together: gaps of up to 16 times the shortest */

/* The i-th number of a tuple; 0 where it does not fit. */
static long long number(PyObject *numbers, Py_ssize_t i) {
    int beyond = 0;
    long long value = PyLong_AsLongLongAndOverflow(PyTuple_GetItem(numbers, i), &beyond);
    return beyond ? 0 : value;
}

/* Each stamp - the one before, as a tuple; None where one of them is not above 0. */
static PyObject *between(PyObject *module, PyObject *stamps) {
    (void)module;
    Py_ssize_t n = PyTuple_Size(stamps) - 1;
    PyObject *gaps = n >= 0 ? PyTuple_New(n) : PyErr_Occurred() ? NULL : PyTuple_New(0);
    long long before = n > 0 && gaps ? number(stamps, 0) : 0;
    for (Py_ssize_t i = 0; i < n && gaps && !PyErr_Occurred(); i++) {
        long long at = number(stamps, i + 1), gap;
        if (before <= 0 || __builtin_sub_overflow(at, before, &gap) || gap <= 0) {
            Py_CLEAR(gaps);
            break;
        }
        PyObject *boxed = PyLong_FromLongLong(gap);
        if (!boxed || PyTuple_SetItem(gaps, i, boxed))
            Py_CLEAR(gaps);
        before = at;
    }
    if (PyErr_Occurred())
        Py_CLEAR(gaps);
    else if (!gaps)
        return Py_NewRef(Py_None);
    return gaps;
}

static int key_of(long long gap) { return (int)ceil(log2((double)gap / 1e9) * 64); }

/* counts[key] += times; -1 with an exception. */
static int add(PyObject *counts, int key, uint32_t times) {
    PyObject *name = PyLong_FromLong(key), *had = name ? PyDict_GetItemWithError(counts, name) : NULL;
    PyObject *now = PyErr_Occurred() ? NULL : PyLong_FromLongLong((had ? PyLong_AsLongLong(had) : 0) + times);
    int failed = !now || PyErr_Occurred() || PyDict_SetItem(counts, name, now);
    Py_XDECREF(name);
    Py_XDECREF(now);
    return failed ? -1 : 0;
}

/* Adds the gaps, ns, to `counts` by bucket; (sum, least, most), ns. None, and nothing added, where one is not above 0. */
static PyObject *count(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *gaps, *counts;
    uint32_t times[KEYS] = {0};
    long long sum = 0, least = INT64_MAX, most = 0;
    if (!PyArg_ParseTuple(arguments, "O!O!", &PyTuple_Type, &gaps, &PyDict_Type, &counts))
        return NULL;
    Py_ssize_t n = PyTuple_Size(gaps);
    for (Py_ssize_t i = 0; i < n; i++) {
        long long gap = number(gaps, i);
        if (gap <= 0 || __builtin_add_overflow(sum, gap, &sum))
            return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
        least = gap < least ? gap : least;
        most = gap > most ? gap : most;
    }
    int first = n ? key_of(least) : 0;
    for (Py_ssize_t i = 0; i < n; i++) { /* most gaps of an answer are alike: one addition a bucket, not a gap */
        int key = key_of(number(gaps, i));
        if (key >= first && key < first + KEYS)
            times[key - first]++;
        else if (add(counts, key, 1))
            return NULL;
    }
    for (int at = 0; at < KEYS; at++)
        if (times[at] && add(counts, first + at, times[at]))
            return NULL;
    return Py_BuildValue("LLL", sum, least, most);
}

static PyMethodDef methods[] = {{"between", between, METH_O, NULL}, {"count", count, METH_VARARGS, NULL}, {0}};
static struct PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_gaps", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__gaps(void) { return PyModule_Create(&module); }
