/* What libFuzzer drives: an answer of any bytes, read by read, through the reader in C as client/native.py uses it.
 *
 * An input is the reads of one answer with STEP between them, as in tests/native/corpus. It is played four times, taken
 * from often or late, with a small bound of an event or a large one; from its first event the others' shape is learnt.
 * Beside what the sanitizers see: what C tells of a body is that body, in order, with nothing left out or told twice.
 * tests/native/fuzz.py builds this and loads it into Python.
 */
#include "../../tokenswarm/client/_reader.c"
#include <stdio.h>
#include <stdlib.h>

#define STEP "\0--step--\0"
#define MUST(true) do { if (!(true)) { fprintf(stderr, "not so, line %d: %s\n", __LINE__, #true); abort(); } } while (0)
enum { STEP_BYTES = 10, KEPT = 1 << 24, SLOTS = 16 };

int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*one)(const uint8_t *data, size_t size));

static Reader *reader;
static PyObject *shape; /* of the first event; NULL: not learnt yet */
static int fd, breaks, is_raw, over, eager, small, keeps; /* of the play that runs */
static Bytes head;

static PyObject *called(const char *name, PyObject *arguments) {
    PyObject *method = PyObject_GetAttrString((PyObject *)reader, name);
    PyObject *told = PyObject_Call(method, arguments, NULL);
    Py_DECREF(method);
    Py_DECREF(arguments);
    if (!told)
        PyErr_Print();
    MUST(told);
    return told;
}

static void segment(Bytes *pattern, char kind, const char *p, const char *end) {
    const char start[] = {kind, (char)((end - p) & 255), (char)((end - p) >> 8)};
    put(pattern, start, 3);
    put(pattern, p, end - p);
}

/* Each text and number of an event becomes a slot. */
static void learn(const char *p, const char *end) {
    Bytes pattern = {0};
    const char *from = p;
    char kind = '=';
    for (int slots = 0; slots < SLOTS && p + 2 < end; p++) {
        const char *stop = p[0] == ':' && p[1] == '"' ? string_end(p + 2, end) : NULL;
        const char *first = p + (stop ? 2 : 1);
        if (!stop && p[0] == ':')
            for (stop = first; stop < end && *stop >= '0' && *stop <= '9'; stop++)
                ;
        if (!stop || stop == first || (stop[0] != '"' && first[0] == '0' && stop > first + 1))
            continue;
        segment(&pattern, kind, from, first);
        kind = first[-1] != '"' ? 'd' : slots % 2 ? 's' : 't';
        from = p = stop;
        slots++;
    }
    segment(&pattern, kind, from, end);
    if (kind != '=' && pattern.len >= 9)
        shape = PyBytes_FromStringAndSize(pattern.at, (Py_ssize_t)pattern.len);
    drop(&pattern);
}

static void split(void) {
    Py_DECREF(called("split", Py_BuildValue("iOii", fd, shape, breaks, keeps ? KEPT : 64)));
}

static void teach(PyObject *pieces) {
    for (Py_ssize_t i = 0; !shape && i < PyList_Size(pieces); i++) {
        PyObject *piece = PyTuple_GetItem(PyList_GetItem(pieces, i), 1);
        const char *p = PyBytes_AsString(piece), *end = p + PyBytes_Size(piece), *stop = memchr(p, '\n', end - p);
        breaks = stop && end - stop > 1 && stop[1] == '\n' ? 2 : 1;
        if (stop && stop < p + 4000)
            learn(p, stop + breaks);
    }
}

/* `kept`: the bytes of all that this take tells, if C was told to keep them. */
static void hold(PyObject *told, const char *kept, size_t n) {
    PyObject *odd = PyTuple_GetItem(told, 1), *pieces = PyTuple_GetItem(told, 2);
    const Py_ssize_t events = PyBytes_Size(PyTuple_GetItem(told, 0)) / (Py_ssize_t)sizeof(int64_t);
    const char *end = kept + n;
    Py_ssize_t odds = 0, count = odd == Py_None ? 0 : PyList_Size(odd);
    for (Py_ssize_t i = 0; i < events; i++) {
        PyObject *pair = odds < count ? PyList_GetItem(odd, odds) : NULL;
        if (!pair || PyLong_AsSsize_t(PyTuple_GetItem(pair, 0)) != i) {
            MUST((kept = fits(shape, kept, end)));
            continue;
        }
        PyObject *line = PyTuple_GetItem(pair, 1);
        const size_t size = PyBytes_Size(line);
        MUST(size <= (size_t)(end - kept) && !memcmp(kept, PyBytes_AsString(line), size));
        kept += size;
        odds++;
    }
    MUST(odds == count);
    for (Py_ssize_t i = 0; pieces != Py_None && i < PyList_Size(pieces); i++) {
        PyObject *piece = PyTuple_GetItem(PyList_GetItem(pieces, i), 1);
        const size_t size = PyBytes_Size(piece);
        MUST(size <= (size_t)(end - kept) && !memcmp(kept, PyBytes_AsString(piece), size));
        kept += size;
    }
    MUST(kept == end);
}

static void take(void) {
    PyObject *told = called("take", Py_BuildValue("(i)", fd)), *tail = PyTuple_GetItem(told, 4);
    PyObject *pieces = PyTuple_GetItem(told, 2);
    if (tail != Py_None && keeps)
        hold(told, PyBytes_AsString(tail), PyBytes_Size(tail));
    const Py_ssize_t count = pieces == Py_None ? 0 : PyList_Size(pieces);
    if (count) {
        teach(pieces);
        PyObject *last = PyTuple_GetItem(PyList_GetItem(pieces, count - 1), 1);
        const char *end = PyBytes_AsString(last) + PyBytes_Size(last);
        if (shape && !is_raw && PyBytes_Size(last) >= breaks && end[-1] == '\n' && end[-breaks] == '\n')
            split();
    }
    Py_DECREF(told);
}

static void fetch(int raw) {
    PyObject *told = called("fetch", Py_BuildValue("ii", fd, raw));
    if (!raw)
        put(&head, PyBytes_AsString(told), PyBytes_Size(told));
    is_raw |= raw;
    Py_DECREF(told);
}

/* The head has ended: what stands behind it is a body, of a length that a few words tell. */
static long begin(void) {
    put(&head, "", 1);
    const char *told = strstr(head.at, "content-length: ");
    const long long length = strstr(head.at, "chunked") ? -1 : told ? strtoll(told + 16, NULL, 10) : -2;
    if (shape)
        split();
    PyObject *news = called("body", Py_BuildValue("iLn", fd, MAX(length, -2), (Py_ssize_t)(small ? 100 : 1 << 20)));
    const long found = PyLong_AsLong(news);
    Py_DECREF(news);
    return found;
}

static void drain(void) {
    PyObject *found = called("drain", PyTuple_New(0));
    MUST(PyList_Size(found) <= 1);
    if (PyList_Size(found)) {
        long news = PyLong_AsLong(PyTuple_GetItem(PyList_GetItem(found, 0), 1));
        if (news & HEAD_CAME)
            fetch(0);
        if (news & HEAD_ENDED)
            news |= begin();
        if (news & RAW_CAME)
            fetch(1);
        over |= (news & (HAS_ENDED | HAS_CLOSED | HAS_FAILED)) != 0;
        if (news & IS_FULL || (eager && !is_raw && !over)) {
            take();
            Py_DECREF(called("watch", Py_BuildValue("ii", fd, !over)));
        }
    }
    Py_DECREF(found);
}

static void play(const char *at, const char *end) {
    int pair[2]; /* of messages: each is one read */
    MUST(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
    fd = pair[0];
    is_raw = over = 0;
    Py_DECREF(called("open", Py_BuildValue("iOLnLLLL", fd, Py_None, 0LL, (Py_ssize_t)4096, 0LL, 0LL, 0LL, 0LL)));
    while (at < end && !over) {
        const char *stop = memmem(at, end - at, STEP, STEP_BYTES), *to = stop ? stop : end;
        for (; at < to && !over; at += MIN(to - at, READ_BYTES)) {
            MUST(send(pair[1], at, MIN(to - at, READ_BYTES), MSG_NOSIGNAL) > 0);
            drain();
        }
        at = stop ? stop + STEP_BYTES : end;
    }
    close(pair[1]);
    if (!over)
        drain();
    over = is_raw = 1;
    if (keeps) /* else it is closed with all that it holds */
        take();
    Py_DECREF(called("close", Py_BuildValue("(i)", fd)));
    close(fd);
    drop(&head);
}

static int one(const uint8_t *data, size_t size) {
    for (int way = 0; way < 4; way++) {
        eager = !(way & 1);
        small = way == 2;
        keeps = way != 3;
        play((const char *)data, (const char *)data + size);
    }
    Py_CLEAR(shape);
    return 0;
}

/* From Python, which holds its lock: the options are libFuzzer's. */
int fuzz(int argc, char **argv) {
    PyObject *module = PyInit__reader(), *type = PyObject_GetAttrString(module, "Reader");
    reader = (Reader *)PyObject_CallFunction(type, "O", Py_None);
    MUST(reader);
    return LLVMFuzzerRunDriver(&argc, &argv, one);
}
