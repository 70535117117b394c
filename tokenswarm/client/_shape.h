/* Does an event look like this shape? A part of _reader.c: no IO, no state. */
static int hex(char c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

static int is_utf8(const char *p, size_t n) {
    PyObject *text = PyUnicode_DecodeUTF8(p, (Py_ssize_t)n, NULL);
    PyErr_Clear();
    Py_XDECREF(text);
    return text != NULL;
}

/* The closing quote of a JSON string whose inside begins at p, or NULL where a strict parser might object. */
static const char *string_end(const char *p, const char *end) {
    const char *from = p;
    int ascii = 1;
    for (; p < end && *p != '"'; p++) {
        unsigned char c = *p;
        ascii &= c < 0x80;
        if (c < 0x20 || (c == '\\' && ++p == end))
            return NULL;
        if (c != '\\' || memchr("\"\\/bfnrt", *p, 8))
            continue;
        if (*p != 'u' || end - p < 5 || hex(p[1]) < 0 || hex(p[2]) < 0 || hex(p[3]) < 0 || hex(p[4]) < 0 ||
            (hex(p[1]) == 13 && hex(p[2]) > 7))
            return NULL; /* the last: half a character, which is Python's to judge */
        p += 4;
    }
    return p < end && (ascii || is_utf8(from, p - from)) ? p : NULL;
}

/* A shape is a row of: what stands in front ('=' nothing, 't' the inside of a JSON string that is not empty, 's' of one
 * that may be, 'd' a whole number), the length of what follows (two bytes, lower first), and the bytes themselves. */
#define SEGMENT(at) ((size_t)(unsigned char)(at)[1] | (size_t)(unsigned char)(at)[2] << 8)

/* The end of an event of this shape that begins at p; NULL: it has another one. */
static const char *fits(PyObject *shape, const char *p, const char *end) {
    const char *at = PyBytes_AsString(shape), *last = at + PyBytes_Size(shape);
    while (at < last) {
        const char *from = p;
        size_t len = SEGMENT(at);
        if (*at == 'd')
            while (p < end && *p >= '0' && *p <= '9')
                p++;
        else if (*at != '=' && !(p = string_end(p, end)))
            return NULL;
        if (((*at == 't' || *at == 'd') && p == from) || (*at == 'd' && *from == '0' && p > from + 1) ||
            (size_t)(end - p) < len || memcmp(p, at + 3, len))
            return NULL;
        p += len;
        at += 3 + len;
    }
    return p;
}
