/* What every answer is counted by: the plain case of measure/counting.py, value for value. What is not plain (events of
 * one stamp, a stamp that runs backwards, numbers beyond 64 bits, a value that is none) gets None, and nothing was
 * counted: it is left to Python. tests/test_counting.py holds both against each other.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
enum { KEYS = 4352, KEY_0 = 2048 }; /* ceil(log2(gap in s) * 64) of 1 to 2^63 - 1 ns lies from -1913 to 2119 */
enum { ROUNDS = 64 }; /* of a search for the median, each over what the last one left; then it is sorted in Python */

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

/* counts[key] += times; -1 with an exception. */
static int add(PyObject *counts, int key, uint32_t times) {
    PyObject *name = PyLong_FromLong(key), *had = name ? PyDict_GetItemWithError(counts, name) : NULL;
    PyObject *now = PyErr_Occurred() ? NULL : PyLong_FromLongLong((had ? PyLong_AsLongLong(had) : 0) + times);
    int failed = !now || PyErr_Occurred() || PyDict_SetItem(counts, name, now);
    Py_XDECREF(name);
    Py_XDECREF(now);
    return failed ? -1 : 0;
}

/* The counts of `table`, uint32 of KEYS buckets; NULL with an exception where it is none. */
static uint32_t *counts_of(PyObject *table, Py_buffer *view) {
    if (PyObject_GetBuffer(table, view, PyBUF_WRITABLE))
        return NULL;
    if (view->len == KEYS * sizeof(uint32_t))
        return view->buf;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_ValueError, "not a table of counts");
    return NULL;
}

/* Adds gaps, ns, to a table of counts; (sum, least, most), ns. None, and nothing added, where one is not above 0. */
static PyObject *count(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *gaps, *table;
    Py_buffer view;
    long long sum = 0, least = INT64_MAX, most = 0;
    if (!PyArg_ParseTuple(arguments, "O!O", &PyTuple_Type, &gaps, &table))
        return NULL;
    Py_ssize_t n = PyTuple_Size(gaps);
    for (Py_ssize_t i = 0; i < n; i++) {
        long long gap = number(gaps, i);
        if (gap <= 0 || __builtin_add_overflow(sum, gap, &sum))
            return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
        least = gap < least ? gap : least;
        most = gap > most ? gap : most;
    }
    uint32_t *times = counts_of(table, &view);
    if (!times)
        return NULL;
    for (Py_ssize_t i = 0; i < n; i++)
        times[KEY_0 + (int)ceil(log2((double)number(gaps, i) / 1e9) * 64)]++;
    PyBuffer_Release(&view);
    return Py_BuildValue("LLL", sum, least, most);
}

/* Moves the counts of a table to a dict, by bucket. */
static PyObject *move(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *table, *counts;
    Py_buffer view;
    if (!PyArg_ParseTuple(arguments, "OO!", &table, &PyDict_Type, &counts))
        return NULL;
    uint32_t *times = counts_of(table, &view);
    int failed = !times;
    for (int key = 0; key < KEYS && !failed; key++) {
        if (times[key])
            failed = add(counts, key - KEY_0, times[key]);
        times[key] = 0;
    }
    if (times)
        PyBuffer_Release(&view);
    return failed ? NULL : Py_NewRef(Py_None);
}

/* Adds each of a list of numbers to `counts` by bucket: True. False, and nothing added, where one is odd. */
static PyObject *count_values(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *values, *counts;
    if (!PyArg_ParseTuple(arguments, "O!O!", &PyList_Type, &values, &PyDict_Type, &counts))
        return NULL;
    Py_ssize_t n = PyList_Size(values);
    for (Py_ssize_t i = 0; i < n; i++) {
        double value = PyFloat_AsDouble(PyList_GetItem(values, i)); /* -1 with an exception */
        if (!(value > 0 && value < INFINITY)) {
            PyErr_Clear();
            return Py_NewRef(Py_False);
        }
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (add(counts, (int)ceil(log2(PyFloat_AsDouble(PyList_GetItem(values, i))) * 64), 1))
            return NULL;
    return Py_NewRef(Py_True);
}

/* The k-th smallest of n numbers, which it moves; 0 where it takes too many rounds. */
static long long smallest(long long *at, Py_ssize_t n, Py_ssize_t k) {
    Py_ssize_t from = 0, to = n - 1;
    for (int round = 0; round < ROUNDS; round++) {
        long long pivot = at[from + (to - from) / 2];
        Py_ssize_t i = from, j = to;
        while (i <= j) {
            for (; at[i] < pivot; i++)
                ;
            for (; at[j] > pivot; j--)
                ;
            if (i <= j) {
                long long other = at[i];
                at[i++] = at[j];
                at[j--] = other;
            }
        }
        if (k <= j)
            to = j;
        else if (k >= i)
            from = i;
        else
            return at[k];
        if (from == to)
            return at[k];
    }
    return 0;
}

/* (sum, lower median, most) of a tuple of numbers above 0; else None. */
static PyObject *spread(PyObject *module, PyObject *numbers) {
    (void)module;
    Py_ssize_t n = PyTuple_Size(numbers);
    long long *values = n > 0 ? PyMem_Malloc(n * sizeof *values) : NULL, sum = 0, most = 0, middle = 1;
    for (Py_ssize_t i = 0; i < n && values && middle; i++) {
        values[i] = number(numbers, i);
        most = values[i] > most ? values[i] : most;
        middle = values[i] > 0 && !__builtin_add_overflow(sum, values[i], &sum);
    }
    if (values && middle)
        middle = smallest(values, n, (n - 1) / 2);
    int plain = values && middle;
    PyMem_Free(values);
    if (PyErr_Occurred())
        return NULL;
    return plain ? Py_BuildValue("LLL", sum, middle, most) : Py_NewRef(Py_None);
}

/* (pairs, sums of x, y, x*x, y*y, x*y) of the logarithms of successive gaps; None where one is not above 0. */
static PyObject *log_sums(PyObject *module, PyObject *gaps) {
    (void)module;
    double x = 0, y = 0, xx = 0, yy = 0, xy = 0, before = 0;
    Py_ssize_t n = PyTuple_Size(gaps);
    for (Py_ssize_t i = 0; i < n; i++) {
        long long gap = number(gaps, i);
        if (gap <= 0)
            return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
        double now = log2((double)gap);
        if (i) {
            x += before;
            y += now;
            xx += before * before;
            yy += now * now;
            xy += before * now;
        }
        before = now;
    }
    return PyErr_Occurred() ? NULL : Py_BuildValue("nddddd", n > 0 ? n - 1 : 0, x, y, xx, yy, xy);
}

static PyMethodDef methods[] = {
    {"between", between, METH_O, NULL},
    {"count", count, METH_VARARGS, NULL},
    {"move", move, METH_VARARGS, NULL},
    {"count_values", count_values, METH_VARARGS, NULL},
    {"spread", spread, METH_O, NULL},
    {"log_sums", log_sums, METH_O, NULL},
    {0},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_counting", .m_methods = methods};

PyMODINIT_FUNC PyInit__counting(void) {
    PyObject *m = PyModule_Create(&module);
    if (m && PyModule_AddIntConstant(m, "KEYS", KEYS))
        Py_CLEAR(m);
    return m;
}
