// Log-linear histograms of times: 2048 buckets an octave, so a bucket is at most 1/2048 = 0.049 % wide.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>

typedef int64_t ns_t;

#define SUB_BITS 11
#define SUB (1 << SUB_BITS)
#define BUCKETS (33 * SUB)  // up to 2^43 ns: 2.4 hours

struct histogram {
    uint64_t n;
    ns_t max;
    uint64_t counts[BUCKETS];
};

static int bucket_of(ns_t value) {
    if (value < SUB) return value < 0 ? 0 : (int)value;
    int shift = 63 - __builtin_clzll((unsigned long long)value) - SUB_BITS;
    int64_t bucket = (int64_t)shift * SUB + (value >> shift);
    return bucket < BUCKETS ? (int)bucket : BUCKETS - 1;
}

static ns_t middle_of(int bucket) {
    int shift = bucket < 2 * SUB ? 0 : bucket / SUB - 1;
    return ((ns_t)(bucket - shift * SUB) << shift) + ((1LL << shift) >> 1);
}

static void count(struct histogram *h, ns_t value) {
    h->n++;
    if (value > h->max) h->max = value;
    h->counts[bucket_of(value)]++;
}

static ns_t quantile(const struct histogram *h, double q) {  // nearest rank
    uint64_t rank = (uint64_t)ceil(q * (double)h->n), seen = 0;
    if (rank < 1) rank = 1;
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += h->counts[i]) >= rank) return middle_of(i) < h->max ? middle_of(i) : h->max;
    return 0;
}

static int print_histogram(char *into, size_t size, const char *name, const struct histogram *h) {
    return snprintf(into, size,
                    ",\n\"%s\": {\"n\": %llu, \"p50\": %lld, \"p90\": %lld, \"p95\": %lld, \"p99\": %lld, \"p999\": %lld, "
                    "\"max\": %lld}",
                    name, (unsigned long long)h->n, (long long)quantile(h, 0.5), (long long)quantile(h, 0.9),
                    (long long)quantile(h, 0.95), (long long)quantile(h, 0.99), (long long)quantile(h, 0.999), (long long)h->max);
}
