// A server of token streams with known truth: one thread, epoll, HTTP/1.1 keep-alive on 127.0.0.1.
//
// Each token is due at a time fixed when its request arrives (the kernel's receive stamp + TTFT, then a jittered gap
// after a gap); its text is the time it was really sent (CLOCK_REALTIME, ns). What was sent, and how late against the
// plan, is kept in histograms: GET /truth tells them as JSON, GET /reset empties them. SIGTERM or SIGINT ends it.
// Build: cc -O2 -o paced_sender paced_sender.c -lm (Linux >= 5.11 and glibc >= 2.35, for epoll_pwait2).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "histogram.h"
#include "token_events.h"

#define NS_PER_S 1000000000LL
#define REQUEST_BYTES_MAX 16384
#define EVENTS_A_POLL 512
#define TOKENS_A_TURN 256  // then look at the sockets again, however long the backlog

static struct {
    int port, tokens;
    ns_t ttft_ns, itl_ns;
    double jitter, merge;
    uint64_t seed;
} options = {.port = 0, .tokens = 128, .ttft_ns = 100000000, .itl_ns = 20000000, .jitter = 0.2, .seed = 1};

static void die(const char *sentence) {
    fprintf(stderr, "paced_sender: %s\n", sentence);
    exit(2);
}

static void *need(void *memory) {
    if (!memory) die("out of memory");
    return memory;
}

static ns_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

// --- The truth. -----------------------------------------------------------------------------------------------------

static struct {
    struct histogram ttft, itl, e2e;
    struct histogram lateness;  // sent − due
    struct histogram send;      // how long the sending took: the stamp is true to within this
    uint64_t started, finished, aborted, tokens, blocked_sends;
    ns_t first_request_ns, last_send_ns;
} truth;

static void print_truth(char *into, size_t size) {
    int n = snprintf(into, size,
                     "{\"started\": %llu, \"finished\": %llu, \"aborted\": %llu, \"tokens\": %llu, "
                     "\"blocked_sends\": %llu, \"elapsed_ns\": %lld",
                     (unsigned long long)truth.started, (unsigned long long)truth.finished,
                     (unsigned long long)truth.aborted, (unsigned long long)truth.tokens,
                     (unsigned long long)truth.blocked_sends,
                     (long long)(truth.tokens ? truth.last_send_ns - truth.first_request_ns : 0));
    n += print_histogram(into + n, size - n, "ttft_ns", &truth.ttft);
    n += print_histogram(into + n, size - n, "itl_ns", &truth.itl);
    n += print_histogram(into + n, size - n, "e2e_ns", &truth.e2e);
    n += print_histogram(into + n, size - n, "lateness_ns", &truth.lateness);
    n += print_histogram(into + n, size - n, "send_ns", &truth.send);
    snprintf(into + n, size - n, "}\n");
}

// --- Connections, and the heap of those that stream, by the time their next token is due. ---------------------------

struct connection {
    int fd;
    int heap_at;              // place in the heap; -1: no stream
    struct dialect *dialect;  // of the stream
    int tokens, sent;
    uint64_t random;
    ns_t request_ns, last_ns, due_ns;
    char held[512];  // a token that goes out with the next one, as behind a proxy that buffers
    int held_bytes;
    char *waiting;  // bytes that the socket did not take
    size_t waiting_bytes;
    int request_bytes;
    char request[REQUEST_BYTES_MAX + 1];
};

static struct connection **heap;
static int heap_size, heap_capacity, poll_fd;
static volatile sig_atomic_t running = 1;

static void heap_put(int at, struct connection *c) {
    heap[at] = c;
    c->heap_at = at;
}

static void heap_settle(struct connection *c) {
    int at = c->heap_at;
    while (at && heap[(at - 1) / 2]->due_ns > c->due_ns) {
        heap_put(at, heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        int child = 2 * at + 1;
        if (child + 1 < heap_size && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (child >= heap_size || heap[child]->due_ns >= c->due_ns) break;
        heap_put(at, heap[child]);
        at = child;
    }
    heap_put(at, c);
}

static void heap_add(struct connection *c) {
    if (heap_size == heap_capacity) {
        heap_capacity = heap_capacity ? 2 * heap_capacity : 1024;
        heap = need(realloc(heap, heap_capacity * sizeof *heap));
    }
    heap_put(heap_size++, c);
    heap_settle(c);
}

static void heap_remove(struct connection *c) {
    struct connection *tail = heap[--heap_size];
    if (tail != c) {
        heap_put(c->heap_at, tail);
        heap_settle(tail);
    }
    c->heap_at = -1;
}

static void close_connection(struct connection *c) {
    if (c->heap_at >= 0) {
        heap_remove(c);
        truth.aborted++;
    }
    close(c->fd);
    free(c->waiting);
    free(c);
}

static void watch(struct connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poll_fd, operation, c->fd, &event)) die("epoll_ctl failed");
}

// Sends, or keeps what the socket does not take. False: the connection is broken.
static bool put(struct connection *c, const char *data, size_t n) {
    if (!c->waiting_bytes) {
        ssize_t sent = send(c->fd, data, n, MSG_NOSIGNAL);
        if (sent == (ssize_t)n) return true;
        if (sent < 0 && errno != EAGAIN) return false;
        if (sent > 0) data += sent, n -= (size_t)sent;
        truth.blocked_sends++;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    c->waiting = need(realloc(c->waiting, c->waiting_bytes + n));
    memcpy(c->waiting + c->waiting_bytes, data, n);
    c->waiting_bytes += n;
    return true;
}

static bool put_waiting(struct connection *c) {
    ssize_t sent = send(c->fd, c->waiting, c->waiting_bytes, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN;
    c->waiting_bytes -= (size_t)sent;
    memmove(c->waiting, c->waiting + sent, c->waiting_bytes);
    if (!c->waiting_bytes) watch(c, EPOLL_CTL_MOD, EPOLLIN);
    return true;
}

// --- Streams. -------------------------------------------------------------------------------------------------------

static double random_unit(uint64_t *state) {  // splitmix64: request k of a run has the same gaps whatever came between
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static bool start_stream(struct connection *c, struct dialect *d, int tokens, ns_t arrived_ns) {
    char head[256];
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 21:37:26 GMT\r\nserver: uvicorn\r\ncontent-type: %s\r\n"
                     "transfer-encoding: chunked\r\n\r\n",
                     d->ndjson ? "application/x-ndjson" : "text/event-stream; charset=utf-8");
    c->dialect = d;
    c->tokens = tokens;
    c->sent = c->held_bytes = 0;
    c->random = options.seed + (truth.started << 32);
    c->request_ns = arrived_ns;
    c->due_ns = arrived_ns + options.ttft_ns;
    if (!truth.started++) truth.first_request_ns = arrived_ns;
    heap_add(c);
    return put(c, head, (size_t)n);
}

static bool end_stream(struct connection *c) {
    char end[2048];
    heap_remove(c);
    int n = make_end(c->dialect, c->tokens, c->last_ns - c->request_ns, end, sizeof end);
    count(&truth.e2e, now_ns() - c->request_ns);
    bool ok = put(c, end, (size_t)n);
    truth.finished++;
    return ok;
}

static void plan_next(struct connection *c) {
    double jitter = 1 + options.jitter * (2 * random_unit(&c->random) - 1);
    c->due_ns += (ns_t)((double)options.itl_ns * jitter);
    heap_settle(c);
}

static void count_token(struct connection *c, ns_t stamp) {
    count(c->sent ? &truth.itl : &truth.ttft, stamp - (c->sent ? c->last_ns : c->request_ns));
    truth.tokens++;
    truth.last_send_ns = c->last_ns = stamp;
    c->sent++;
}

// Keeps the token that is due until the next one. False: it is not to be kept.
static bool hold(struct connection *c) {
    if (!options.merge || c->held_bytes || !c->sent || c->sent + 1 >= c->tokens) return false;
    if (random_unit(&c->random) >= options.merge) return false;
    memcpy(c->held, c->dialect->token.bytes, (size_t)c->dialect->token.length);
    c->held_bytes = c->dialect->token.length;
    plan_next(c);
    return true;
}

// Sends the token that is due, and the one that waited for it, in one write.
static bool send_token(struct connection *c) {
    struct dialect *d = c->dialect;
    if (hold(c)) return true;
    if (!c->sent && d->role) {
        char role[512];
        if (!put(c, role, (size_t)make_chunk(role, sizeof role, d->role))) return false;
    }
    bool two = c->held_bytes > 0;
    struct token *token = c->sent + 1 + two == c->tokens ? &d->last_token : &d->token;
    char both[2 * sizeof c->held];
    int at = c->held_bytes;
    c->held_bytes = 0;
    ns_t stamp = now_ns();
    memcpy(both, c->held, (size_t)at);
    if (two) write_stamp(both + d->token.stamp_at, stamp);
    memcpy(both + at, token->bytes, (size_t)token->length);
    write_stamp(both + at + token->stamp_at, stamp);
    if (!put(c, both, (size_t)(at + token->length))) return false;
    count(&truth.send, now_ns() - stamp);
    count(&truth.lateness, stamp - c->due_ns);
    if (two) count_token(c, stamp);
    count_token(c, stamp);
    if (c->sent == c->tokens) return end_stream(c);
    plan_next(c);
    return true;
}

// --- Requests. ------------------------------------------------------------------------------------------------------

static bool answer(struct connection *c, const char *status, const char *body) {
    char text[4096];
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", status,
                     strlen(body), body);
    return put(c, text, (size_t)n);
}

static int tokens_wanted(const char *body) {
    static const char *const names[] = {"\"max_tokens\"", "\"max_completion_tokens\"", "\"num_predict\""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *at = strstr(body, names[i]);
        if (at) return atoi(at + strlen(names[i]) + strspn(at + strlen(names[i]), ": "));
    }
    return options.tokens;
}

static bool answer_get(struct connection *c, const char *path) {
    char body[3072] = "{}\n";
    if (!strncmp(path, "/truth ", 7))
        print_truth(body, sizeof body);
    else if (!strncmp(path, "/reset ", 7))
        memset(&truth, 0, sizeof truth);
    else
        return answer(c, "404 Not Found", "{\"error\": \"GET /truth or /reset\"}\n");
    return answer(c, "200 OK", body);
}

static bool answer_request(struct connection *c, const char *body, ns_t arrived_ns) {
    if (!strncmp(c->request, "GET ", 4)) return answer_get(c, c->request + 4);
    for (size_t i = 0; i < sizeof dialects / sizeof *dialects; i++) {
        size_t n = strlen(dialects[i].path);
        if (strncmp(c->request, "POST ", 5) || strncmp(c->request + 5, dialects[i].path, n) || c->request[5 + n] != ' ')
            continue;
        int tokens = tokens_wanted(body);
        if (tokens < 1) return answer(c, "400 Bad Request", "{\"error\": \"the token limit must be 1 or more\"}\n");
        return start_stream(c, &dialects[i], tokens, arrived_ns);
    }
    return answer(c, "404 Not Found", "{\"error\": \"no such path\"}\n");
}

// Answers what has arrived whole, one stream at a time. False: close the connection.
static bool handle_requests(struct connection *c, ns_t arrived_ns) {
    while (c->heap_at < 0 && c->request_bytes) {
        c->request[c->request_bytes] = 0;
        char *end = strstr(c->request, "\r\n\r\n");
        if (!end) return c->request_bytes < REQUEST_BYTES_MAX;
        *end = 0;
        char *length = strcasestr(c->request, "\r\ncontent-length:");
        bool chunked = strcasestr(c->request, "\r\ntransfer-encoding:");
        int body_bytes = length ? atoi(length + strlen("\r\ncontent-length:")) : 0;
        *end = '\r';
        int bytes = (int)(end + 4 - c->request) + body_bytes;
        if (chunked || body_bytes < 0 || bytes > REQUEST_BYTES_MAX) return false;
        if (bytes > c->request_bytes) return true;
        if (!answer_request(c, end + 4, arrived_ns)) return false;
        c->request_bytes -= bytes;
        memmove(c->request, c->request + bytes, (size_t)c->request_bytes);
    }
    return true;
}

// Reads with the kernel's receive stamp: a request that had to wait for us must not look as if it had come later.
static bool read_requests(struct connection *c) {
    char control[128];
    struct iovec room = {c->request + c->request_bytes, (size_t)(REQUEST_BYTES_MAX - c->request_bytes)};
    struct msghdr message = {.msg_iov = &room, .msg_iovlen = 1};
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t n = recvmsg(c->fd, &message, 0);
    if (n < 0) return errno == EAGAIN;
    if (n == 0) return false;
    ns_t arrived_ns = now_ns();
    struct cmsghdr *stamp = CMSG_FIRSTHDR(&message);
    if (stamp && stamp->cmsg_level == SOL_SOCKET && stamp->cmsg_type == SO_TIMESTAMPNS) {
        struct timespec t;
        memcpy(&t, CMSG_DATA(stamp), sizeof t);
        arrived_ns = t.tv_sec * NS_PER_S + t.tv_nsec;
    }
    c->request_bytes += (int)n;
    return handle_requests(c, arrived_ns);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = need(calloc(1, sizeof *c));
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        c->heap_at = -1;
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
    if (errno == EMFILE || errno == ENFILE) die("no file descriptors left; raise `ulimit -n`");
}

// --- The loop. ------------------------------------------------------------------------------------------------------

static void wait_for_work(int listener) {
    struct epoll_event events[EVENTS_A_POLL];
    struct timespec pause = {1, 0};
    if (heap_size) {
        ns_t left_ns = heap[0]->due_ns - now_ns();
        if (left_ns < 0) left_ns = 0;
        pause = (struct timespec){left_ns / NS_PER_S, left_ns % NS_PER_S};
    }
    int n = epoll_pwait2(poll_fd, events, EVENTS_A_POLL, &pause, NULL);
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        if (!c) {
            accept_all(listener);
            continue;
        }
        bool ok = !(events[i].events & EPOLLOUT) || !c->waiting_bytes || put_waiting(c);
        if (ok && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) ok = read_requests(c);
        if (!ok) close_connection(c);
    }
}

static void send_due_tokens(void) {
    ns_t now = now_ns();
    for (int i = 0; i < TOKENS_A_TURN && heap_size && heap[0]->due_ns <= now; i++) {
        struct connection *c = heap[0];
        if (!send_token(c) || !handle_requests(c, now)) close_connection(c);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);  // accepted sockets inherit it
    if (fd < 0 || bind(fd, (void *)&address, size) || listen(fd, 4096)) die("can't listen on this port of 127.0.0.1");
    getsockname(fd, (void *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static double number(const char *name, const char *text, double low, double high) {
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= low && value <= high)) {
        fprintf(stderr, "paced_sender: %s takes a number from %g to %g, not '%s'\n", name, low, high, text);
        exit(2);
    }
    return value;
}

static void read_options(int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *text = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(name, "--port")) options.port = (int)number(name, text, 0, 65535);
        else if (!strcmp(name, "--ttft-ms")) options.ttft_ns = (ns_t)(number(name, text, 0, 3600e3) * 1e6);
        else if (!strcmp(name, "--itl-ms")) options.itl_ns = (ns_t)(number(name, text, 0, 3600e3) * 1e6);
        else if (!strcmp(name, "--tokens")) options.tokens = (int)number(name, text, 1, 1e6);
        else if (!strcmp(name, "--jitter")) options.jitter = number(name, text, 0, 1);
        else if (!strcmp(name, "--merge")) options.merge = number(name, text, 0, 1);
        else if (!strcmp(name, "--seed")) options.seed = (uint64_t)number(name, text, 0, 4294967295.0);
        else die("options: --port --ttft-ms --itl-ms --tokens --jitter (0..1, of the gap) --merge (0..1, of the tokens)"
                 " --seed, each with a number");
    }
}

static void stop(int signal_number) {
    (void)signal_number;
    running = 0;
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    for (size_t i = 0; i < sizeof dialects / sizeof *dialects; i++) {
        make_token(&dialects[i].token, dialects[i].before, dialects[i].after);
        make_token(&dialects[i].last_token, dialects[i].before, dialects[i].last);
    }
    struct sigaction on_signal = {.sa_handler = stop};  // no SA_RESTART: the poll must end
    sigaction(SIGTERM, &on_signal, NULL);
    sigaction(SIGINT, &on_signal, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // whoever started it may have died, or not yet know that it has
    prctl(PR_SET_TIMERSLACK, 1);  // the default lets every wake-up be 50 µs late
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(options.port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (poll_fd < 0 || epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &event)) die("epoll failed");
    while (running) {
        wait_for_work(listener);
        send_due_tokens();
    }
    return 0;
}
