/* A stand-in for the NVIDIA driver's libnvidia-ml.so.1, so that tests on machines without a GPU can let the
 * real pynvml load it and ask.
 *
 * All that it says is in the text file FAKE_NVML_STATE, of "key = value" lines: one call sees one state, and a
 * test changes what a running process will be told by replacing the file. Every call asks whether it was
 * replaced, and only then reads it: a real driver answers in microseconds, and what a sampler costs is measured
 * against this library too. tests/support/virtual_gpu.py writes the file and says what the keys are.
 *
 * The functions, structures and codes are those of the public NVML reference:
 * https://docs.nvidia.com/deploy/nvml-api/
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST_CARDS 16
#define MOST_SLICES 8
#define STATE_BYTES 65536
#define NOT_AVAILABLE 0xFFFFFFFFFFFFFFFFULL

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, ARGUMENT_VERSION_MISMATCH = 25
};

typedef unsigned int u32;
typedef unsigned long long u64;
typedef int result;
typedef struct { int card, slice; } device; /* slice < 0: the whole card */

static device devices[MOST_CARDS][MOST_SLICES + 1];
static int initialised;
static __thread char state[STATE_BYTES];

/* ---- The state file ---- */

/* Read the file unless it is the one that was read last. Whoever writes it gives each a time of its own. */
static void read_state(void)
{
    static __thread struct stat seen;
    struct stat now;
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file;
    if (path && !stat(path, &now) && now.st_ino == seen.st_ino && now.st_size == seen.st_size
        && now.st_mtim.tv_sec == seen.st_mtim.tv_sec && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
        return;
    memset(&seen, 0, sizeof seen);
    file = path ? fopen(path, "r") : NULL;
    if (file)
        fstat(fileno(file), &seen);
    state[file ? fread(state, 1, sizeof state - 1, file) : 0] = 0;
    if (file)
        fclose(file);
}

/* Copy the value of a key and tell whether it is there. */
static int look_up(const char *key, char *value, size_t size)
{
    size_t key_length = strlen(key);
    for (const char *line = state; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        if (strncmp(line, key, key_length) || strncmp(line + key_length, " = ", 3))
            continue;
        const char *start = line + key_length + 3;
        size_t length = strcspn(start, "\n");
        if (length >= size)
            length = size - 1;
        memcpy(value, start, length);
        value[length] = 0;
        return 1;
    }
    return 0;
}

static u64 number(const char *key, u64 otherwise)
{
    char value[32];
    if (!look_up(key, value, sizeof value))
        return otherwise;
    return strcmp(value, "na") ? strtoull(value, NULL, 0) : NOT_AVAILABLE;
}

static void key_of(const device *one, const char *field, char *key, size_t size)
{
    if (one->slice < 0)
        snprintf(key, size, "card.%d.%s", one->card, field);
    else
        snprintf(key, size, "card.%d.slice.%d.%s", one->card, one->slice, field);
}

static u64 field_number(const device *one, const char *field, u64 otherwise)
{
    char key[96];
    key_of(one, field, key, sizeof key);
    return number(key, otherwise);
}

static int field_text(const device *one, const char *field, char *value, size_t size)
{
    char key[96];
    key_of(one, field, key, sizeof key);
    return look_up(key, value, size);
}

static void log_call(const char *function)
{
    char path[1024];
    FILE *file = look_up("calls", path, sizeof path) ? fopen(path, "a") : NULL;
    if (!file)
        return;
    fprintf(file, "%s\n", function);
    fclose(file);
}

/* Read the state, wait if the state says so, and return the error that it wants of this function. */
static result enter(const char *function, int needs_initialised)
{
    char key[128];
    u64 code, delay_us;
    read_state();
    log_call(function);
    snprintf(key, sizeof key, "delay_us.%s", function);
    delay_us = number(key, number("delay_us.*", 0));
    if (delay_us) /* even a sleep of nought is a switch to another thread and back */
        usleep((useconds_t)delay_us);
    snprintf(key, sizeof key, "fail.%s", function);
    code = number(key, number("fail.*", SUCCESS));
    if (code != SUCCESS)
        return (result)code;
    return needs_initialised && !initialised ? UNINITIALIZED : SUCCESS;
}

#define ENTER_SYSTEM()                                                                                        \
    do {                                                                                                      \
        result code_ = enter(__func__, 1);                                                                    \
        if (code_ != SUCCESS)                                                                                 \
            return code_;                                                                                     \
    } while (0)
#define ENTER(one)                                                                                            \
    do {                                                                                                      \
        ENTER_SYSTEM();                                                                                       \
        if (!(one))                                                                                           \
            return INVALID_ARGUMENT;                                                                          \
    } while (0)
#define ENTER_CARD(one) /* what the driver tells of whole cards only */                                      \
    do {                                                                                                      \
        ENTER(one);                                                                                           \
        if ((one)->slice >= 0)                                                                                \
            return NOT_SUPPORTED;                                                                             \
    } while (0)

static result put_text(char *target, u32 size, const char *text)
{
    if (strlen(text) + 1 > size)
        return INSUFFICIENT_SIZE;
    strcpy(target, text);
    return SUCCESS;
}

static int count_cards(void)
{
    u64 count = number("cards", 0);
    return count < MOST_CARDS ? (int)count : MOST_CARDS;
}

static int count_slices(int card)
{
    device whole = {card, -1};
    u64 count = field_number(&whole, "slices", 0);
    return count < MOST_SLICES ? (int)count : MOST_SLICES;
}

static device *find(int card, int slice)
{
    device *one = &devices[card][slice + 1];
    one->card = card;
    one->slice = slice;
    return one;
}

/* ---- Library and system ---- */

EXPORT result nvmlInitWithFlags(u32 flags)
{
    result code = enter("nvmlInit", 0);
    (void)flags;
    if (code == SUCCESS)
        initialised++;
    return code;
}
EXPORT result nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT result nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT result nvmlShutdown(void)
{
    ENTER_SYSTEM();
    initialised--;
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(result code)
{
    switch (code) {
    case SUCCESS: return "Success";
    case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "An error that this fake has no words for";
    }
}

EXPORT result nvmlSystemGetDriverVersion(char *version, u32 size)
{
    char value[80] = "";
    ENTER_SYSTEM();
    look_up("driver_version", value, sizeof value);
    return put_text(version, size, value);
}

EXPORT result nvmlSystemGetCudaDriverVersion(int *version)
{
    ENTER_SYSTEM();
    *version = (int)number("cuda_version", 0);
    return SUCCESS;
}
EXPORT result nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

/* ---- Devices and what they are ---- */

EXPORT result nvmlDeviceGetCount_v2(u32 *count)
{
    ENTER_SYSTEM();
    *count = (u32)count_cards();
    return SUCCESS;
}

EXPORT result nvmlDeviceGetHandleByIndex_v2(u32 index, device **one)
{
    ENTER_SYSTEM();
    if ((int)index >= count_cards())
        return INVALID_ARGUMENT;
    *one = find((int)index, -1);
    return (result)field_number(*one, "refuses_with", SUCCESS);
}

EXPORT result nvmlDeviceGetHandleByUUID(const char *uuid, device **found)
{
    char value[96];
    ENTER_SYSTEM();
    for (int card = 0; card < count_cards(); card++)
        for (int slice = -1; slice < count_slices(card); slice++) {
            device *one = find(card, slice);
            if (field_text(one, "uuid", value, sizeof value) && !strcmp(value, uuid)) {
                *found = one;
                return SUCCESS;
            }
        }
    return NOT_FOUND;
}

EXPORT result nvmlDeviceGetUUID(device *one, char *uuid, u32 size)
{
    char value[96] = "";
    ENTER(one);
    field_text(one, "uuid", value, sizeof value);
    return put_text(uuid, size, value);
}

EXPORT result nvmlDeviceGetName(device *one, char *name, u32 size)
{
    char value[96] = "";
    ENTER(one);
    field_text(one, "name", value, sizeof value);
    return put_text(name, size, value);
}

EXPORT result nvmlDeviceGetIndex(device *one, u32 *index)
{
    ENTER(one);
    *index = (u32)(one->slice < 0 ? one->card : one->slice);
    return SUCCESS;
}

typedef struct {
    char bus_id_legacy[16];
    u32 domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_info;

EXPORT result nvmlDeviceGetPciInfo_v3(device *one, pci_info *info)
{
    ENTER_CARD(one);
    memset(info, 0, sizeof *info);
    info->bus = (u32)one->card + 1;
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "0000:%02X:00.0", info->bus & 0xFF);
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", info->bus & 0xFF);
    return SUCCESS;
}

EXPORT result nvmlDeviceGetEnforcedPowerLimit(device *one, u32 *milliwatts)
{
    ENTER_CARD(one);
    *milliwatts = (u32)field_number(one, "power_limit_mw", 0);
    return SUCCESS;
}

/* ---- MIG ---- */

EXPORT result nvmlDeviceGetMigMode(device *one, u32 *current, u32 *pending)
{
    u64 mode;
    ENTER_CARD(one);
    mode = field_number(one, "mig_mode", NOT_AVAILABLE);
    if (mode == NOT_AVAILABLE)
        return NOT_SUPPORTED;
    *current = *pending = (u32)mode;
    return SUCCESS;
}

EXPORT result nvmlDeviceGetMaxMigDeviceCount(device *one, u32 *count)
{
    ENTER_CARD(one);
    *count = field_number(one, "mig_mode", 0) == 1 ? MOST_SLICES - 1 : 0;
    return SUCCESS;
}

EXPORT result nvmlDeviceGetMigDeviceHandleByIndex(device *one, u32 index, device **slice)
{
    ENTER_CARD(one);
    if ((int)index >= count_slices(one->card))
        return NOT_FOUND;
    *slice = find(one->card, (int)index);
    return SUCCESS;
}

EXPORT result nvmlDeviceIsMigDeviceHandle(device *one, u32 *is_slice)
{
    ENTER(one);
    *is_slice = one->slice >= 0;
    return SUCCESS;
}

EXPORT result nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device *one, device **card)
{
    ENTER(one);
    *card = find(one->card, -1);
    return SUCCESS;
}

/* ---- Memory: version 1 counts what the driver reserves as used, version 2 counts it apart ---- */

typedef struct { u64 total, free, used; } memory_v1;
typedef struct { u32 version; u64 total, reserved, free, used; } memory_v2;

EXPORT result nvmlDeviceGetMemoryInfo(device *one, memory_v1 *memory)
{
    u64 reserved;
    ENTER(one);
    reserved = field_number(one, "reserved_bytes", 0);
    memory->total = field_number(one, "total_bytes", 0);
    memory->used = field_number(one, "used_bytes", 0);
    if (memory->used != NOT_AVAILABLE)
        memory->used += reserved;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

EXPORT result nvmlDeviceGetMemoryInfo_v2(device *one, memory_v2 *memory)
{
    ENTER(one);
    if (memory->version != (sizeof *memory | 2u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    memory->total = field_number(one, "total_bytes", 0);
    memory->reserved = field_number(one, "reserved_bytes", 0);
    memory->used = field_number(one, "used_bytes", 0);
    memory->free = memory->total - memory->used - memory->reserved;
    return SUCCESS;
}

/* ---- Processes: versions 2 and 3 share a structure, version 1 has no instances ---- */

typedef struct { u32 pid; u64 used; } process_v1;
typedef struct { u32 pid; u64 used; u32 gpu_instance, compute_instance; } process_v3;

static result list_processes(const char *function, device *one, const char *field, u32 *count, void *list, int version)
{
    char value[8192] = "", *rest = NULL;
    u32 room = *count, found = 0;
    result code = enter(function, 1);
    if (code != SUCCESS)
        return code;
    if (!one)
        return INVALID_ARGUMENT;
    field_text(one, field, value, sizeof value);
    for (const char *at = value; *at; at++)
        found += *at == ':';
    *count = found;
    if (found > room || (found && !list))
        return INSUFFICIENT_SIZE;
    found = 0;
    for (char *item = strtok_r(value, " ", &rest); item; item = strtok_r(NULL, " ", &rest), found++) {
        const char *bytes = strchr(item, ':') + 1;
        u32 pid = (u32)strtoul(item, NULL, 10);
        u64 used = strcmp(bytes, "na") ? strtoull(bytes, NULL, 10) : NOT_AVAILABLE;
        u32 instance = one->slice < 0 ? 0xFFFFFFFFu : (u32)one->slice;
        if (version == 1)
            ((process_v1 *)list)[found] = (process_v1){pid, used};
        else
            ((process_v3 *)list)[found] = (process_v3){pid, used, instance, instance};
    }
    return SUCCESS;
}

#define PROCESS_LIST(name, field, version)                                                                    \
    EXPORT result name(device *one, u32 *count, void *list)                                                   \
    {                                                                                                         \
        return list_processes(__func__, one, field, count, list, version);                                    \
    }
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, "compute", 3)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v2, "compute", 2)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses, "compute", 1)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics", 3)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics", 2)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses, "graphics", 1)

/* ---- Readings of the card ---- */

EXPORT result nvmlDeviceGetPowerUsage(device *one, u32 *milliwatts)
{
    ENTER_CARD(one);
    *milliwatts = (u32)field_number(one, "power_mw", 0);
    return SUCCESS;
}

EXPORT result nvmlDeviceGetTotalEnergyConsumption(device *one, u64 *millijoules)
{
    ENTER_CARD(one);
    *millijoules = field_number(one, "energy_mj", 0);
    return SUCCESS;
}

EXPORT result nvmlDeviceGetTemperature(device *one, int sensor, u32 *degrees)
{
    ENTER_CARD(one);
    (void)sensor;
    *degrees = (u32)field_number(one, "temperature_c", 0);
    return SUCCESS;
}

EXPORT result nvmlDeviceGetClockInfo(device *one, int type, u32 *megahertz)
{
    ENTER_CARD(one);
    *megahertz = (u32)field_number(one, type == 1 ? "sm_clock_mhz" : "other_clock_mhz", 0);
    return SUCCESS;
}

EXPORT result nvmlDeviceGetCurrentClocksEventReasons(device *one, u64 *reasons)
{
    ENTER_CARD(one);
    *reasons = field_number(one, "event_reasons", 0);
    return SUCCESS;
}

EXPORT result nvmlDeviceGetCurrentClocksThrottleReasons(device *one, u64 *reasons)
{
    ENTER_CARD(one);
    *reasons = field_number(one, "event_reasons", 0);
    return SUCCESS;
}

typedef struct { u32 gpu, memory; } utilisation;

EXPORT result nvmlDeviceGetUtilizationRates(device *one, utilisation *percent)
{
    ENTER_CARD(one);
    percent->gpu = (u32)field_number(one, "utilisation_percent", 0);
    percent->memory = 0;
    return SUCCESS;
}
