/* A stand-in for libnvidia-ml.so.1: two GPUs, so that the exporter's real binding (ctypes structures, versions, errors)
 * is exercised on a machine without a driver. What is not here, the binding reports as FUNCTION_NOT_FOUND, as an old
 * driver would. While the file $STUB_LOST exists, GPU 0 is lost. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct { int index; } Device;
static Device devices[2] = {{0}, {1}};
static int opened, waits;

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, LOST = 15,
       VERSION_MISMATCH = 25 };

static int state(Device *d) {
  const char *file = getenv("STUB_LOST");
  if (!opened) return UNINITIALIZED;
  return d && d->index == 0 && file && access(file, F_OK) == 0 ? LOST : OK;
}

#define NEED(d) do { int s = state(d); if (s) return s; } while (0)

int nvmlInitWithFlags(unsigned flags) { (void)flags; opened++; return OK; }
int nvmlShutdown(void) { if (!opened) return UNINITIALIZED; opened--; return OK; }
const char *nvmlErrorString(int code) { (void)code; return "stub"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { NEED(0); strncpy(text, "550.54.15", size); return OK; }
int nvmlSystemGetCudaDriverVersion(int *version) { NEED(0); *version = 12040; return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { NEED(0); *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **d) {
  if (index > 1) return INVALID;
  NEED(&devices[index]);
  *d = &devices[index];
  return OK;
}
int nvmlDeviceGetUUID(Device *d, char *text, unsigned size) {
  NEED(d); strncpy(text, d->index ? "GPU-stub-1" : "GPU-stub-0", size); return OK;
}
int nvmlDeviceGetName(Device *d, char *text, unsigned size) { NEED(d); strncpy(text, "Stub GPU", size); return OK; }

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
int nvmlDeviceGetPciInfo_v3(Device *d, Pci *p) { NEED(d); memset(p, 0, sizeof *p); strcpy(p->bus_id, "00000000:41:00.0"); return OK; }

typedef struct { unsigned gpu, memory; } Rates;
int nvmlDeviceGetUtilizationRates(Device *d, Rates *r) { NEED(d); r->gpu = 75; r->memory = 25; return OK; }

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned long long total, free, used; } Memory1;
int nvmlDeviceGetMemoryInfo_v2(Device *d, Memory2 *m) {
  NEED(d);
  if (d->index == 1) return VERSION_MISMATCH; /* GPU 1 plays the driver that only knows version 1 */
  if (m->version != 0x02000028) return VERSION_MISMATCH;
  m->total = 1000; m->reserved = 100; m->free = 600; m->used = 300;
  return OK;
}
int nvmlDeviceGetMemoryInfo(Device *d, Memory1 *m) { NEED(d); m->total = 1000; m->free = 600; m->used = 400; return OK; }
int nvmlDeviceGetClockInfo(Device *d, int clock, unsigned *mhz) { NEED(d); *mhz = 1000 + 10 * clock; return OK; }
int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *celsius) { NEED(d); (void)sensor; *celsius = 55; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(Device *d, unsigned *mw) { NEED(d); *mw = 0xFFFFFFFFu; return OK; } /* a sentinel */
int nvmlDeviceGetPowerUsage(Device *d, unsigned *mw) { NEED(d); *mw = 250500; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *bits) { NEED(d); *bits = 0x4; return OK; }

typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, Process *p) {
  NEED(d);
  if (*count < 2) { *count = 2; return INSUFFICIENT_SIZE; }
  *count = 2;
  p[0] = (Process){1, 4096, ~0u, ~0u};
  p[1] = (Process){2, d->index ? ~0ull : 1024, ~0u, ~0u}; /* ~0: the driver hides it */
  return OK;
}

typedef struct { unsigned id, scope; long long timestamp, latency; int type, result; union { double d; unsigned u; unsigned long long ull; int i; } v; } Field;
int nvmlDeviceGetFieldValues(Device *d, int count, Field *f) {
  NEED(d);
  for (int i = 0; i < count; i++) {
    f[i].result = OK; f[i].type = 3; f[i].v.ull = 0;
    switch (f[i].id) {
      case 83: f[i].v.ull = 5000000123ull; break;               /* mJ, 64 bits */
      case 186: f[i].type = 1; f[i].v.ull = 0xdead00000000ull; f[i].v.u = 333250; break; /* 32 bits: the rest is garbage */
      case 82: f[i].type = 5; f[i].v.i = -3; break;             /* signed */
      case 138: f[i].v.ull = f[i].scope == 0xFFFFFFFFu ? 7 : 1; break; /* KiB, needs the scope */
      case 94: f[i].v.ull = ~0ull; break;                       /* a sentinel */
      case 197: case 198: { /* PCIe bytes, 32 bits: 40 GB/s out, 4 GB/s in, for GPU 0 */
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        double sent = (t.tv_sec + t.tv_nsec * 1e-9) * (f[i].id == 197 ? 40e9 : 4e9);
        f[i].type = 1; f[i].v.u = (unsigned)(unsigned long long)sent;
        if (d->index == 1) f[i].result = NOT_SUPPORTED;
        break;
      }
      case 3: f[i].type = 0; f[i].v.d = 2.0; break;             /* double */
      case 4: f[i].type = 77; break;                            /* a type that the binding does not know */
      default: f[i].result = NOT_SUPPORTED;
    }
  }
  return OK;
}

int nvmlEventSetCreate(void **set) { NEED(0); *set = devices; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(Device *d, unsigned long long types, void *set) { NEED(d); (void)set; return types == 8 ? OK : INVALID; }
typedef struct { Device *d; unsigned long long type, data; unsigned gi, ci; } Event;
int nvmlEventSetWait_v2(void *set, Event *e, unsigned ms) {
  NEED(0); (void)set;
  if (waits++ == 0) { *e = (Event){&devices[1], 8, 63, ~0u, ~0u}; return OK; }
  usleep(ms * 1000);
  return TIMEOUT;
}

typedef struct { unsigned version, supported; } Support;
int nvmlGpmQueryDeviceSupport(Device *d, Support *s) { NEED(d); s->supported = d->index == 0; return OK; }
int nvmlGpmSampleAlloc(void **sample) { *sample = calloc(1, sizeof(int)); return OK; }
int nvmlGpmSampleGet(Device *d, int *sample) { static int taken; NEED(d); *sample = ++taken; return OK; }
typedef struct { unsigned id; int result; double value; char *names[3]; } GpmMetric;
typedef struct { unsigned version, count; int *older, *newer; GpmMetric metrics[]; } Gpm;
int nvmlGpmMetricsGet(Gpm *g) {
  if (g->version != 1 || *g->newer != *g->older + 1) return INVALID; /* two samples, in order */
  for (unsigned i = 0; i < g->count; i++) {
    g->metrics[i].result = g->metrics[i].id == 10 ? NOT_SUPPORTED : OK;
    g->metrics[i].value = 10.0 * g->metrics[i].id;
  }
  return OK;
}
