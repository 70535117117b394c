/* One epoll set for all streams of a worker: receive with the kernel's stamp, take HTTP/1.1 bodies apart, split events.
 *
 * A stream is a descriptor between `open` and `close`. Its head goes to Python as it came; Python says what the body is
 * (`body`), or that it wants every byte itself (`raw`). Bodies go to Python as pieces until it knows what an event of
 * this stream looks like (`split`): from then on C keeps 8 bytes an event, the stamp of the read that completed it, and
 * the bytes of those events that look otherwise. What is not plain is handed back byte-exact: text that is not one line
 * an event as pieces, from behind the last whole event on; a chunk extension or a trailer as raw bytes, from its line.
 *
 * Times are ns. The rule that turns the kernel's stamps into monotonic ones is that of client/stamps.py; its plain case
 * stands here, and others are asked for. tests/test_readers.py holds this file against the reader in Python.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "_shape.h"
enum { READ_BYTES = 16384, BATCH = 256, SIZE_LINE_MAX = 20, NEAR_NS = 500000 };
enum { LATE_NS = 500000 }; /* above the period of collecting: who looks that often finds little that waited */
enum { FEW = 64 };         /* streams that may be read with more calls than one: who is late with more is too slow */
enum { STACK_NS = 100000 }; /* what the stack stamped may not be readable for so long; and the error of the clocks */
enum { LAG_KEYS = 4352, LAG_KEY_0 = 2048 }; /* ceil(log2(lag in s) * 64) of any lag of 1 ns to 2^63 ns lies inside */

/* What `drain` and `body` say of a stream; client/native.py has the same numbers. */
enum { HEAD_CAME = 1, RAW_CAME = 2, PIECES_CAME = 4, IS_FULL = 8, HAS_ENDED = 16, HAS_CLOSED = 32, HAS_FAILED = 64 };
enum { CHUNK_BROKEN = 128, HEAD_ENDED = 256, WOKE_EMPTY = 512 };
enum phase { HEAD, RAW, SIZE, DATA, DATA_END, LAST, WHOLE };

typedef struct { char *at; size_t len, room; } Bytes;

typedef struct {
    PyObject *key;
    int fd, news, head_len;
    enum phase phase;
    signed char watched, chunked, crlf, trailing, breaks, begun, line_len;
    char line[SIZE_LINE_MAX]; /* the chunk size line so far */
    uint64_t left;            /* bytes of this chunk or body */
    Bytes rest;               /* head or raw bytes that Python has not fetched, and what waits behind a head */
    PyObject *shape;          /* of an event, with its line breaks; NULL: the body goes to Python in pieces */
    Bytes held;               /* behind the last whole event: no line end in it */
    Bytes stamps, tail;       /* 8 bytes an event; the newest bytes of the body, not all where they are many */
    size_t event_max, pause_max, tail_max, pending, events;
    int64_t held_ns, last_ns, lag_max, since_ns; /* the last: at rest and empty from here on, if not read */
    PyObject *odd, *pieces, *lows; /* [(place among the events, bytes)], [(stamp, bytes)], [(low, stamp)]; NULL: none */
    uint64_t reads, bytes;
} Stream;

typedef struct {
    PyObject_HEAD
    PyObject *place;             /* where a stamp is not plain: (key, stamp, floor, low, now) -> (moment, *clocks) */
    long long offset, low, high; /* the clocks: their distance, and what two looks at once may say of it */
    long long set_ns;            /* when they were seen to be others than before: what waited may be of before */
    int epoll;
    int64_t looked_ns; /* before the last epoll_wait but this that told of all there was */
    Stream **streams; /* by descriptor */
    size_t room;
    uint64_t lags[LAG_KEYS], lag_n, alike, near, ends; /* near: within NEAR_NS, or unknown; not at an end */
    int64_t lag_sum, lag_min, lag_max, gaps;
    char data[READ_BYTES];
} Reader;

static void *grown(void *at, size_t *room, size_t wanted, size_t size) {
    size_t more = *room ? *room : 64;
    while (more < wanted)
        more *= 2;
    at = PyMem_Realloc(at, more * size);
    *room = at ? more : *room;
    return at ? at : PyErr_NoMemory(); /* NULL */
}

static int put(Bytes *b, const char *p, size_t n) {
    char *at = b->at;
    if (b->len + n > b->room && !(at = grown(at, &b->room, b->len + n, 1)))
        return -1;
    b->at = at;
    if (n)
        memcpy(b->at + b->len, p, n);
    b->len += n;
    return 0;
}

static void drop(Bytes *b) {
    PyMem_Free(b->at);
    *b = (Bytes){0};
}

static int append(PyObject **list, PyObject *item) {
    if (item && !*list)
        *list = PyList_New(0);
    int failed = !item || !*list || PyList_Append(*list, item);
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

static void free_stream(Stream *s) {
    drop(&s->rest);
    drop(&s->held);
    drop(&s->stamps);
    drop(&s->tail);
    PyObject *owned[] = {s->key, s->shape, s->odd, s->pieces, s->lows};
    for (int i = 0; i < 5; i++)
        Py_XDECREF(owned[i]);
    PyMem_Free(s);
}

static int add_piece(Stream *s, const char *p, size_t n, int64_t ns) {
    if (!n)
        return 0;
    s->pending += n;
    s->news |= PIECES_CAME;
    return append(&s->pieces, Py_BuildValue("Ly#", (long long)ns, p, (Py_ssize_t)n));
}

/* Body bytes of one read, in order. */
static int take_body(Stream *s, const char *p, size_t n, int64_t ns) {
    if (!s->shape)
        return add_piece(s, p, n, ns);
    const size_t before = s->held.len;
    if (before && put(&s->held, p, n))
        return -1;
    const char *at = before ? s->held.at : p, *end = at + before + n, *stop;
    int plain = 1;
    while (at < end) {
        const char *next = fits(s->shape, at, end);
        if (!next || (size_t)(next - at - s->breaks) > s->event_max) { /* perhaps a line of its own, of another shape */
            stop = memchr(at, '\n', end - at);
            const char *to = stop ? stop : end;
            int blank = !stop || (stop > at && end - stop > 1 && stop[1] == '\n');
            plain = s->breaks == 1 || (blank && !memchr(at, '\r', to - at));
            if (!s->begun) /* what Python can't take for anything but the beginning of such a stream */
                plain &= s->breaks == 2 && (!stop || (to - at > 6 && !memcmp(at, PyBytes_AsString(s->shape) + 3, 6)));
            if (!stop || !plain)
                break;
            next = stop + s->breaks;
            s->pending += next - at;
            if (append(&s->odd, Py_BuildValue("ny#", (Py_ssize_t)s->events, at, (Py_ssize_t)(next - at))))
                return -1;
        }
        if (put(&s->stamps, (const char *)&ns, sizeof ns))
            return -1;
        s->events++;
        s->begun = 1;
        at = next;
    }
    size_t left = end - at, old = at == s->held.at ? before : 0;
    if (plain && left <= s->event_max && left <= READ_BYTES) { /* else too long, even for a look at each read */
        s->held_ns = ns;
        if (before && left)
            memmove(s->held.at, at, s->held.len = left);
        else if (before)
            drop(&s->held);
        return before ? 0 : put(&s->held, at, left);
    }
    Py_CLEAR(s->shape);
    int failed = add_piece(s, at, old, s->held_ns) || add_piece(s, at + old, left - old, ns);
    drop(&s->held);
    return failed ? -1 : 0;
}

/* Somebody wants the last bytes of the body, whatever becomes of them. */
static int keep(Stream *s, const char *p, size_t n) {
    if (s->tail.len > 2 * s->tail_max) {
        memmove(s->tail.at, s->tail.at + s->tail.len - s->tail_max, s->tail_max);
        s->tail.len = s->tail_max;
    }
    return put(&s->tail, p, n);
}

/* The bytes of one read from p on are Python's, and all that come; `line` is in front of them. */
static int hand_over(Stream *s, const char *p, size_t n) {
    s->phase = RAW;
    s->news |= RAW_CAME;
    int failed = put(&s->rest, s->line, s->line_len);
    s->line_len = 0;
    return failed ? -1 : put(&s->rest, p, n);
}

/* The value of a chunk size line, hex CRLF; -1: it is not plain, -2: nor whole yet. */
static int64_t chunk_size(const char *line, int n) {
    int64_t size = 0;
    int i = 0;
    for (; i < n && i < 15 && hex(line[i]) >= 0; i++)
        size = size * 16 + hex(line[i]);
    const int part = i == n || (i && i + 1 == n && line[i] == '\r');
    return part ? -2 : i && i + 2 == n && line[i] == '\r' && line[i + 1] == '\n' ? size : -1;
}

static int feed(Stream *s, const char *p, size_t n, int64_t ns) {
    const char *end = p + n;
    while (p < end) {
        switch (s->phase) {
        case HEAD:
            s->news |= HEAD_CAME;
            for (const char *q = p; q < end && s->crlf < 4;) {
                s->crlf = *q == "\r\n\r\n"[s->crlf] ? s->crlf + 1 : *q == '\r';
                s->head_len = (int)(++q - p);
            }
            s->news |= s->crlf == 4 ? HEAD_ENDED : 0;
            return put(&s->rest, p, end - p); /* what stands behind the head waits for Python's word */
        case RAW:
            return hand_over(s, p, end - p);
        case SIZE: {
            const char *stop = memchr(p, '\n', end - p);
            size_t part = (stop ? stop + 1 : end) - p;
            if (part > (size_t)(SIZE_LINE_MAX - s->line_len))
                return hand_over(s, p, end - p);
            memcpy(s->line + s->line_len, p, part);
            s->line_len += (int)part;
            p += part;
            int64_t size = chunk_size(s->line, s->line_len);
            if (size == -1)
                return hand_over(s, p, end - p);
            s->phase = size == -2 ? SIZE : (s->left = size) ? DATA : LAST;
            s->line_len = size > 0 ? 0 : s->line_len; /* that of the last is kept: a trailer makes all of it Python's */
            break;
        }
        case DATA: {
            size_t part = MIN((uint64_t)(end - p), s->left);
            if (take_body(s, p, part, ns) || (s->tail_max && keep(s, p, part)))
                return -1;
            p += part;
            s->phase = (s->left -= part) ? DATA : s->chunked ? DATA_END : WHOLE;
            break;
        }
        case DATA_END: case LAST:
            if (*p != "\r\n"[s->crlf]) {
                s->news |= s->phase == DATA_END ? CHUNK_BROKEN : 0;
                return hand_over(s, p, end - p);
            }
            s->line[s->line_len++] = *p++;
            if (++s->crlf == 2) {
                s->crlf = s->line_len = 0;
                s->phase = s->phase == LAST ? WHOLE : SIZE;
            }
            break;
        case WHOLE:
            s->trailing |= *p != '\r' && *p != '\n'; /* between answers, line breaks are no answer */
            p++;
        }
    }
    s->news |= s->phase == WHOLE ? HAS_ENDED : 0;
    return 0;
}

static int64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The monotonic moment of the kernel's stamp where the clocks stand as they stood, else -1. Nothing came before low. */
static int64_t plainly(const Reader *r, const Stream *s, int64_t stamp, int64_t low, int64_t now_ns) {
    const int64_t apart = now(CLOCK_REALTIME) - now_ns, ns = stamp - r->offset;
    const int plain = apart >= r->low && apart <= r->high && MAX(s->last_ns, low) >= r->set_ns;
    return plain && ns >= s->last_ns && ns <= now_ns ? ns : -1;
}

/* The monotonic moment of the kernel's stamp; -1 with an exception. */
static int64_t place(Reader *r, Stream *s, int64_t stamp, long long low, long long now_ns) {
    long long at = plainly(r, s, stamp, low, now_ns), last_ns = s->last_ns;
    if (at != -1)
        return at;
    PyObject *told = PyObject_CallFunction(r->place, "OLLLL", s->key, (long long)stamp, last_ns, low, now_ns);
    const int placed = told && PyArg_ParseTuple(told, "LLLLL", &at, &r->offset, &r->low, &r->high, &r->set_ns);
    Py_XDECREF(told);
    return placed ? at : -1;
}

static void count_read(Reader *r, Stream *s, ssize_t n, int64_t lag) {
    s->reads++;
    s->bytes += n;
    s->lag_max = MAX(s->lag_max, lag);
    r->lag_max = MAX(r->lag_max, lag);
    r->lag_min = r->lag_n++ ? MIN(r->lag_min, lag) : lag;
    r->lag_sum += lag;
    if (lag > 0) /* else the sketch has no key for it */
        r->lags[(int)ceil(log2((double)lag / 1e9) * 64) + LAG_KEY_0]++; /* the keys of measure/sketch.py */
}

/* Receive up to `most` bytes, and by the wall clock the kernel's stamp of the last of them; 0: there is none. */
static ssize_t get(Stream *s, char *into, size_t most, int flags, int64_t *stamp) {
    char control[CMSG_SPACE(sizeof(struct timespec))]; /* one stamp, and no room for the kernel to tell it twice */
    struct iovec io = {into, most};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    const ssize_t n = recvmsg(s->fd, &m, MSG_DONTWAIT | flags);
    struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&m);
    struct timespec t = {0};
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS)
        memcpy(&t, CMSG_DATA(c), sizeof t);
    *stamp = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    return n;
}

/* Nothing was got: why, errno, in *ns. The kernel tells an error once, to whoever asks first. */
static int get_nothing(Stream *s, int64_t *ns) {
    s->news |= (*ns = errno) == EAGAIN ? WOKE_EMPTY : *ns == EINTR ? 0 : HAS_FAILED; /* empty: an error queue woke us */
    return s->since_ns = now(CLOCK_MONOTONIC), 0;
}

/* One read, to `at` in the buffer, of which nothing came before `low` (0: who knows); its stamp in *ns. */
static int receive(Reader *r, Stream *s, size_t at, size_t most, int64_t low, int64_t *ns) {
    int64_t stamp;
    const ssize_t n = get(s, r->data + at, most, 0, &stamp);
    if (n < 0)
        return get_nothing(s, ns);
    const int64_t now_ns = *ns = now(CLOCK_MONOTONIC);
    s->since_ns = n == (ssize_t)most ? now_ns : s->since_ns; /* there may be more, which came before this */
    if ((stamp || (n && now_ns - low > LATE_NS)) && (*ns = place(r, s, stamp, low, now_ns)) == -1)
        return -1;
    if (!n)
        return s->news |= HAS_CLOSED, 0;
    const int tighter = low > s->last_ns && low < *ns;
    const int64_t gap = stamp ? *ns - s->last_ns : 0; /* a stamp of ours does not say how near they came */
    const size_t before = s->events;
    s->last_ns = *ns;
    count_read(r, s, n, now_ns - *ns);
    if (feed(s, r->data + at, n, *ns))
        return -1;
    const int hides = s->events > before + !(s->news & HAS_ENDED);
    r->ends += s->news & HAS_ENDED ? 1 : 0;
    if (s->events > before && !s->odd) { /* an answer ends with odd ones, which come together */
        r->alike += s->events - before;
        r->near += s->events - before - (gap >= NEAR_NS);
        r->gaps += gap;
    }
    return tighter && hides ? append(&s->lows, Py_BuildValue("LL", (long long)low, (long long)*ns)) : 0;
}

/* Behind the next event of this text; NULL: none ends in it. */
static const char *event_end(const Stream *s, const char *p, const char *end) {
    for (const char *q = p; (q = memchr(q, '\n', end - q)); q++)
        if (q > p && (s->breaks == 2 ? q[-1] == '\n' : q[-1] != '\r')) /* not the line of a chunk's size */
            return q + 1;
    return NULL;
}

/* Read what a stream has. Events that nobody looked for in a while may lie in segments that the kernel did not join,
 * and each of those has its own stamp: an event is read by itself where what follows it has another one. What was
 * joined has the newest stamp of all, so no event in it can pass for the only one. Not where a stamp is not plain: what
 * waited when the clock was set is one read, as nobody knows when any of it came. */
static int receive_all(Reader *r, Stream *s, int64_t low, int late, int64_t *ns) {
    int64_t own, next;
    const ssize_t n = late && s->shape ? get(s, r->data, READ_BYTES, MSG_PEEK, &own) : 0;
    if (n < 0)
        return get_nothing(s, ns);
    const char *stop = r->data, *end = stop + n;
    const size_t skip = s->chunked ? 3 : 1; /* to the first byte of the next chunk */
    for (size_t at = 0; n > 0 && own && (stop = event_end(s, stop, end)) && stop + skip <= end;) {
        const size_t part = stop - r->data - at;
        if (get(s, r->data, part, MSG_PEEK | MSG_TRUNC, &own) < 0 ||
            get(s, r->data, part + skip, MSG_PEEK | MSG_TRUNC, &next) < 0 || own == next)
            continue;
        if (plainly(r, s, own, low, now(CLOCK_MONOTONIC)) == -1)
            break;
        if (receive(r, s, at, part, low, ns))
            return -1;
        at += part;
    }
    return receive(r, s, 0, READ_BYTES, low, ns);
}

static int watch(Reader *r, Stream *s, int on) {
    struct epoll_event e = {.events = EPOLLIN, .data.fd = s->fd};
    if (s->watched != on && epoll_ctl(r->epoll, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, s->fd, &e))
        return PyErr_SetFromErrno(PyExc_OSError) ? 0 : -1; /* it returns NULL */
    s->watched = on;
    s->since_ns = on ? now(CLOCK_MONOTONIC) : s->since_ns;
    return 0;
}

/* drain() -> [(key, news, stamp or errno, low)]: read each stream that has something once; those that need Python. One
 * that the look before did not tell of, or was read since, was empty: what it holds came after `low`; 0: who knows. */
static PyObject *reader_drain(Reader *r, PyObject *Py_UNUSED(none)) {
    struct epoll_event ready[BATCH];
    const int64_t looks_ns = now(CLOCK_MONOTONIC);
    int count = epoll_wait(r->epoll, ready, BATCH, 0);
    const int late = count <= FEW && looks_ns - r->looked_ns > LATE_NS;
    PyObject *found = PyList_New(0);
    for (int i = 0; found && i < count; i++) {
        Stream *s = r->streams[ready[i].data.fd];
        int64_t ns = 0, low = r->looked_ns > s->since_ns ? r->looked_ns - STACK_NS : 0;
        s->news = 0;
        int failed = receive_all(r, s, low, late, &ns);
        if (s->pending + s->stamps.len > s->pause_max)
            s->news |= IS_FULL;
        if (!failed && s->news & (IS_FULL | HAS_ENDED | HAS_CLOSED | HAS_FAILED))
            failed = watch(r, s, 0);
        long long told = ns, least = low < ns ? low : 0; /* 0: it was on its way through the stack for longer */
        if (failed || (s->news && append(&found, Py_BuildValue("OiLL", s->key, s->news, told, least))))
            Py_CLEAR(found);
    }
    if (count >= 0 && count < BATCH)
        r->looked_ns = looks_ns;
    return found;
}

static Stream *stream_of(Reader *r, long fd) {
    if (fd >= 0 && (size_t)fd < r->room && r->streams[fd])
        return r->streams[fd];
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_KeyError, "descriptor %ld is not open in this reader", fd);
    return NULL;
}

#define FIND(s, fd) Stream *s = stream_of(r, fd); if (!s) return NULL
#define OR_NONE(list) ((list) ? (list) : Py_NewRef(Py_None))
#define FLAG(s, fd, on) int fd, on; if (!PyArg_ParseTuple(arguments, "ip", &fd, &on)) return NULL; FIND(s, fd)
/* open(fd, key, floor, pause_max, *clocks): read it from now on; no stamp lies before `floor`. */
static PyObject *reader_open(Reader *r, PyObject *arguments) {
    int fd;
    PyObject *key;
    long long floor, *set = &r->set_ns;
    Py_ssize_t pause_max;
    if (!PyArg_ParseTuple(arguments, "iOLnLLLL", &fd, &key, &floor, &pause_max, &r->offset, &r->low, &r->high, set))
        return NULL;
    if (fd < 0 || pause_max < 0 || ((size_t)fd < r->room && r->streams[fd]))
        return PyErr_Format(PyExc_ValueError, "descriptor %d can't be opened", fd);
    if ((size_t)fd >= r->room) {
        size_t before = r->room;
        Stream **streams = grown(r->streams, &r->room, (size_t)fd + 1, sizeof *streams);
        if (!streams)
            return NULL;
        r->streams = streams;
        memset(streams + before, 0, (r->room - before) * sizeof *streams);
    }
    Stream *s = PyMem_Malloc(sizeof *s);
    if (!s)
        return PyErr_NoMemory();
    *s = (Stream){.key = Py_NewRef(key), .fd = fd, .pause_max = pause_max, .last_ns = floor};
    if (watch(r, s, 1)) {
        free_stream(s);
        return NULL;
    }
    r->streams[fd] = s;
    Py_RETURN_NONE;
}

static PyObject *reader_close(Reader *r, PyObject *number) {
    FIND(s, PyLong_AsLong(number));
    if (watch(r, s, 0))
        PyErr_Clear(); /* the socket was closed before, and the set has forgotten it */
    r->streams[s->fd] = NULL;
    free_stream(s);
    Py_RETURN_NONE;
}

/* watch(fd, on): pause, or go on reading. */
static PyObject *reader_watch(Reader *r, PyObject *arguments) {
    FLAG(s, fd, on);
    return watch(r, s, on) ? NULL : Py_NewRef(Py_None);
}

/* fetch(fd, raw) -> the bytes that wait, but not those behind a head; `raw`: these, too, and all that will come. */
static PyObject *reader_fetch(Reader *r, PyObject *arguments) {
    FLAG(s, fd, raw);
    s->phase = raw ? RAW : s->phase;
    size_t n = s->phase == HEAD && s->crlf == 4 ? (size_t)s->head_len : s->rest.len;
    PyObject *told = PyBytes_FromStringAndSize(s->rest.at, (Py_ssize_t)n);
    if (told && (s->rest.len -= n))
        memmove(s->rest.at, s->rest.at + n, s->rest.len);
    else if (told)
        drop(&s->rest);
    return told;
}

/* body(fd, length, event_max) -> news. Its length, -1: chunked, -2: until close. */
static PyObject *reader_body(Reader *r, PyObject *arguments) {
    int fd;
    long long length;
    Py_ssize_t event_max;
    if (!PyArg_ParseTuple(arguments, "iLn", &fd, &length, &event_max))
        return NULL;
    FIND(s, fd);
    if (s->phase != HEAD || s->crlf != 4 || event_max < 0 || length < -2)
        return PyErr_Format(PyExc_ValueError, "a body follows a head, and has a bound");
    s->event_max = event_max;
    s->crlf = 0;
    s->chunked = length == -1;
    s->left = length; /* until close: more than can come */
    s->phase = length == -1 ? SIZE : length ? DATA : WHOLE;
    Bytes rest = s->rest;
    s->rest = (Bytes){0};
    s->news = s->phase == WHOLE ? HAS_ENDED : 0;
    int failed = rest.len && feed(s, rest.at, rest.len, s->last_ns);
    drop(&rest);
    return failed ? NULL : PyLong_FromLong(s->news);
}

/* split(fd, shape, breaks, tail_max): what comes next begins an event, which so many line breaks end; called before
 * `body`, only if the body does begin with one, or with a line that has its first six bytes. */
static PyObject *reader_split(Reader *r, PyObject *arguments) {
    int fd, breaks;
    unsigned tail_max;
    PyObject *shape;
    if (!PyArg_ParseTuple(arguments, "iSiI", &fd, &shape, &breaks, &tail_max))
        return NULL;
    FIND(s, fd);
    const char *at = PyBytes_AsString(shape), *last = at + PyBytes_Size(shape);
    while (last - at > 3 && strchr("=tsd", *at) && SEGMENT(at) <= (size_t)(last - at - 3))
        at += 3 + SEGMENT(at);
    if (PyBytes_Size(shape) < 9 || at != last || breaks < 1 || breaks > 2 || s->pieces || s->events || s->held.len)
        return PyErr_Format(PyExc_ValueError, "this is no shape, or there is something to take");
    Py_XDECREF(s->shape);
    s->shape = Py_NewRef(shape);
    s->breaks = breaks;
    s->tail_max = MAX(s->tail_max, tail_max);
    s->begun = s->phase != HEAD;
    Py_RETURN_NONE;
}

/* take(fd) -> what came since the last take: stamps of events, 8 bytes each; [(place, bytes)] of those with another
 * shape; then body pieces [(stamp, bytes)]; [(low, stamp)] of reads of several events, or of one and the end, that came
 * between these; the last bytes of all these where they are kept; reads, bytes, the largest lag, the stamp of the last
 * read, and whether bytes stand behind the end. */
static PyObject *reader_take(Reader *r, PyObject *number) {
    FIND(s, PyLong_AsLong(number));
    if (s->held.len) /* it goes to Python, and so does the body from now on */
        Py_CLEAR(s->shape);
    if (add_piece(s, s->held.at, s->held.len, s->held_ns))
        return NULL;
    drop(&s->held);
    PyObject *told = Py_BuildValue(
        "y#NNNy#KKLLi", s->events ? s->stamps.at : "", (Py_ssize_t)s->stamps.len, OR_NONE(s->odd), OR_NONE(s->pieces),
        OR_NONE(s->lows), s->tail.at, (Py_ssize_t)s->tail.len, (unsigned long long)s->reads,
        (unsigned long long)s->bytes, (long long)s->lag_max, (long long)s->last_ns, (int)s->trailing);
    s->odd = s->pieces = s->lows = NULL; /* they are Python's now */
    drop(&s->tail);
    s->stamps.len = s->events = s->pending = s->reads = s->bytes = s->lag_max = 0;
    return told;
}

/* lags() -> [(key of the sketch, reads)], reads, their sum, min, max in ns, of which 0 has no key; events of their
 * stream's shape, those of them that came near the one before, ends, the sum of the gaps: since the last call. */
static PyObject *reader_lags(Reader *r, PyObject *Py_UNUSED(none)) {
    PyObject *counts = PyList_New(0);
    for (int i = 0; counts && i < LAG_KEYS; i++)
        if (r->lags[i] && append(&counts, Py_BuildValue("iK", i - LAG_KEY_0, (unsigned long long)r->lags[i])))
            Py_CLEAR(counts);
    PyObject *told = Py_BuildValue("NKLLLKKKL", counts, r->lag_n, r->lag_sum, r->lag_min, r->lag_max, r->alike, r->near,
                                   r->ends, r->gaps);
    memset(r->lags, 0, sizeof r->lags);
    r->lag_n = r->lag_sum = r->lag_min = r->lag_max = r->alike = r->near = r->ends = r->gaps = 0;
    return told;
}

static PyObject *reader_fileno(Reader *r, PyObject *Py_UNUSED(none)) {
    return PyLong_FromLong(r->epoll);
}

static PyObject *reader_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(none)) {
    PyObject *place;
    Reader *r = PyArg_ParseTuple(arguments, "O", &place) ? (Reader *)PyType_GenericAlloc(type, 0) : NULL;
    if (!r)
        return NULL;
    r->place = Py_NewRef(place);
    if ((r->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_CLEAR(r);
    }
    return (PyObject *)r;
}

static void reader_dealloc(Reader *r) {
    PyTypeObject *type = Py_TYPE((PyObject *)r);
    for (size_t fd = 0; fd < r->room; fd++)
        if (r->streams[fd])
            free_stream(r->streams[fd]);
    PyMem_Free(r->streams);
    close(r->epoll);
    Py_XDECREF(r->place);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(r);
    Py_DECREF(type);
}

#define METHOD(name, flags) {#name, (PyCFunction)(void (*)(void))reader_##name, flags, NULL}
static PyMethodDef methods[] = {
    METHOD(fileno, METH_NOARGS), METHOD(open, METH_VARARGS),  METHOD(close, METH_O),     METHOD(watch, METH_VARARGS),
    METHOD(drain, METH_NOARGS),  METHOD(fetch, METH_VARARGS), METHOD(body, METH_VARARGS), METHOD(split, METH_VARARGS),
    METHOD(take, METH_O),        METHOD(lags, METH_NOARGS),   {0},
};
static PyType_Slot slots[] = {{Py_tp_new, reader_new}, {Py_tp_dealloc, reader_dealloc}, {Py_tp_methods, methods}, {0}};
static PyType_Spec spec = {"tokenswarm.client._reader.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, slots};
static struct PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_reader", .m_size = -1};

PyMODINIT_FUNC PyInit__reader(void) {
    PyObject *m = PyModule_Create(&module), *type = m ? PyType_FromSpec(&spec) : NULL;
    if (!type || PyModule_AddObjectRef(m, "Reader", type))
        Py_CLEAR(m);
    Py_XDECREF(type);
    return m;
}
