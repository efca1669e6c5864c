// A client with a constant rate, which wrk has not: HTTP/1.1 POSTs over kept connections, each sent when it is due.
// A latency counts from when its request was due, not from when it was sent, so a stall costs all that came due meanwhile.
//
//     rate PORT PATH REQUESTS_PER_SEC SECS CONNECTIONS
//
// Prints JSON. The first tenth of the requests is warm-up and left out. Exits with 1 at the first answer that is no 2xx.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 1024
#define BODY_BYTES 160

struct connection {
    int fd;
    int64_t due_ns;
    size_t have;
    char answer[8192];
};

static struct connection connections[MAX_CONNECTIONS];

static void fail(const char *what) {
    fprintf(stderr, "failed to %s\n", what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int dial(int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at)) fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

// Reads what is there. Whether the answer is whole.
static int take(struct connection *c) {
    ssize_t got = recv(c->fd, c->answer + c->have, sizeof c->answer - 1 - c->have, 0);
    if (got <= 0) fail("read an answer");
    c->have += got;
    c->answer[c->have] = 0;
    char *body = strstr(c->answer, "\r\n\r\n");
    if (!body) return 0;
    if (strncmp(c->answer, "HTTP/1.1 2", 10)) fail("get a 2xx");
    char *length = strcasestr(c->answer, "\r\ncontent-length:");
    if (!length || length > body) fail("find Content-Length");
    return c->have >= (size_t)(body + 4 - c->answer) + strtoul(length + 17, NULL, 10);
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 6) fail("understand the arguments: PORT PATH REQUESTS_PER_SEC SECS CONNECTIONS");
    double per_sec = atof(argv[3]), secs = atof(argv[4]);
    int count = atoi(argv[5]);
    int64_t total = per_sec * secs, skipped = total / 10, sent = 0, done = 0;
    if (total < 100 || count < 1 || count > MAX_CONNECTIONS) fail("take these numbers");

    char request[1024], body[BODY_BYTES + 1];
    memset(body, ' ', BODY_BYTES);
    body[BODY_BYTES] = 0;
    const char *json = "{\"agent_id\":\"agent_001\"}";
    memcpy(body, json, strlen(json));
    int size = snprintf(request, sizeof request,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", argv[2],
        argv[1], BODY_BYTES, body);
    if (size >= (int)sizeof request) fail("take so long a path");

    prctl(PR_SET_TIMERSLACK, 1);
    int poll = epoll_create1(0);
    // Connections that wait for a request, the longest waiting first.
    struct connection *free_ones[MAX_CONNECTIONS];
    int64_t freed = 0, taken = 0;
    for (int n = 0; n < count; n++) {
        connections[n].fd = dial(atoi(argv[1]));
        struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = &connections[n]};
        epoll_ctl(poll, EPOLL_CTL_ADD, connections[n].fd, &wanted);
        free_ones[freed++ % count] = &connections[n];
    }
    int64_t *latencies = malloc(total * sizeof *latencies);
    if (!latencies) fail("get memory");

    int64_t begun = now_ns(), now = begun;
    while (done < total) {
        int64_t due = begun + sent * 1e9 / per_sec;
        while (sent < total && due <= now && taken < freed) {
            struct connection *c = free_ones[taken++ % count];
            c->due_ns = due;
            c->have = 0;
            if (send(c->fd, request, size, MSG_NOSIGNAL) != size) fail("send");
            due = begun + ++sent * 1e9 / per_sec;
            now = now_ns();
        }
        int64_t left = due > now ? due - now : 0;
        struct timespec until_due = {left / 1000000000, left % 1000000000}, five = {5, 0};
        int may_send = sent < total && taken < freed;
        struct epoll_event ready[256];
        int events = epoll_pwait2(poll, ready, 256, may_send ? &until_due : &five, NULL);
        now = now_ns();
        if (events < 0 || (events == 0 && !may_send)) fail("get an answer within 5 s");
        for (int n = 0; n < events; n++) {
            struct connection *c = ready[n].data.ptr;
            if (!take(c)) continue;
            now = now_ns();
            latencies[done++] = now - c->due_ns;
            free_ones[freed++ % count] = c;
        }
    }
    double took = (now - begun) / 1e9;
    int64_t kept = total - skipped, *of = latencies + skipped;
    qsort(of, kept, sizeof *of, ascending);
    printf("{\"requests\":%ld,\"secs\":%.6f,\"errors\":0,\"p50_us\":%.1f,\"p99_us\":%.1f}\n", (long)total, took, of[kept / 2] / 1e3,
        of[kept * 99 / 100] / 1e3);
}
