/*
 * The environment of C programs, and the settings made from it. No value is guessed: one that can't be read is an error
 * that names the variable, its value and what was expected.
 */
#define _DEFAULT_SOURCE 1
#include "api/config.h"

#include "base/checked.h"
#include "base/log.h"
#include "ccoip.h"
#include "io/loop.h"
#include "io/sock.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* Values -------------------------------------------------------------------------------------------------------- */

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

static pc_status bad(pc_error *error, const char *name, const char *value, const char *expected) {
    return pc_error_set(error, pcclInvalidArgument, "%s='%.200s': expected %s", name, value, expected);
}

static pc_status unusable_file(pc_error *error, const char *name, const char *path, int sys_errno) {
    return pc_error_set(error, pcclInvalidArgument, "%s='%.200s': %s", name, path, strerror(sys_errno));
}

/* The digits at text as a number; NULL if there are none or it is above max, else what follows them. */
static const char *parse_digits(const char *text, uint64_t max, uint64_t *value) {
    const char *at = text;
    for (*value = 0; *at >= '0' && *at <= '9'; at++) {
        *value = *value * 10 + (uint64_t)(*at - '0');
        if (*value > max) return NULL;
    }
    return at != text ? at : NULL;
}

/* A decimal number with an optional fraction, whatever the locale. More than an option can say is the most it can. */
static bool parse_seconds(const char *text, uint32_t *ms) {
    uint64_t value = 0, unit = 1000;
    const char *at = text;
    size_t digits = 0;
    for (; *at >= '0' && *at <= '9'; at++, digits++) {
        value = pc_min_u64(value * 10 + unit * (uint64_t)(*at - '0'), UINT32_MAX);
    }
    if (*at == '.') {
        for (at++; *at >= '0' && *at <= '9'; at++, digits++) value += (unit /= 10) * (uint64_t)(*at - '0');
    }
    *ms = (uint32_t)pc_min_u64(value, UINT32_MAX);
    return digits > 0 && *at == '\0' && *ms > 0;
}

static pc_status choose_ms(uint32_t explicit_ms, const char *name, uint32_t default_ms, uint32_t *out,
                           pc_error *error) {
    const char *text = explicit_ms == 0 ? variable(name) : NULL;
    *out = explicit_ms != 0 ? explicit_ms : default_ms;
    if (text == NULL || parse_seconds(text, out)) return pcclSuccess;
    return bad(error, name, text, "a time in seconds, such as 2.5 and at least 0.001");
}

static pc_status choose_algorithm(pcclAlgorithm_t *algorithm, pc_error *error) {
    static const char *const names[] = {"auto", "ring", "tree", "direct", "exchange"};
    const char *text = variable("PCCL_ALGO");
    *algorithm = PCCL_ALGORITHM_AUTO;
    if (text == NULL) return pcclSuccess;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcasecmp(text, names[i]) != 0) continue;
        *algorithm = (pcclAlgorithm_t)i;
        return pcclSuccess;
    }
    return bad(error, "PCCL_ALGO", text, "auto, ring, tree, direct or exchange");
}

static pc_status choose_shared_memory(bool *wanted, pc_error *error) {
    const char *text = variable("PCCL_SHM");
    *wanted = text == NULL || strcmp(text, "1") == 0;
    return *wanted || strcmp(text, "0") == 0 ? pcclSuccess : bad(error, "PCCL_SHM", text, "0 or 1");
}

/* A text and what it is called where it was given; value NULL: nowhere. */
struct text {
    const char *name, *value;
};

static struct text choose_text(const char *option, const char *explicit_text, const char *name) {
    return explicit_text != NULL ? (struct text){option, explicit_text} : (struct text){name, variable(name)};
}

static pc_status copy_text(struct text text, char *out, size_t out_bytes, pc_error *error) {
    if (text.value == NULL) return pcclSuccess;
    if (strlen(text.value) >= out_bytes) return bad(error, text.name, text.value, "a shorter text");
    memcpy(out, text.value, strlen(text.value) + 1);
    return pcclSuccess;
}

/* A count from 1; *out stays as it is where the variable is not there. */
static pc_status read_count(const char *name, uint64_t most, const char *expected, uint64_t *out, pc_error *error) {
    const char *text = variable(name), *end = text != NULL ? parse_digits(text, most, out) : NULL;
    if (text == NULL || (end != NULL && *end == '\0' && *out > 0)) return pcclSuccess;
    return bad(error, name, text, expected);
}

static pc_status choose_threads(uint32_t *out, pc_error *error) {
    uint64_t count = 1;
    PC_TRY(read_count("PCCL_NTHREADS", PC_LOOP_THREADS_MAX, "a whole number from 1 to 16", &count, error));
    *out = (uint32_t)count;
    return pcclSuccess;
}

/* Two threads cannot copy for one connection at a time: by default there is one for each. */
static pc_status choose_connections(uint32_t explicit_count, uint32_t threads, uint32_t *out, pc_error *error) {
    uint64_t count = explicit_count;
    if (count == 0) {
        count = pc_max_u64(PC_DEFAULT_CONNECTIONS, threads);
        PC_TRY(read_count("PCCL_NCONNS", PC_STRIPES_MAX, "a whole number from 1 to 64", &count, error));
    }
    /* An explicit larger one is from a program written for thread pools; more than this brings nothing. */
    *out = (uint32_t)pc_min_u64(count, PC_STRIPES_MAX);
    return pcclSuccess;
}

static bool parse_ports(const char *text, uint64_t *first, uint64_t *last) {
    const char *end = parse_digits(text, UINT16_MAX, first);
    *last = *first;
    if (end != NULL && *end == '-') end = parse_digits(end + 1, UINT16_MAX, last);
    return end != NULL && *end == '\0' && *first > 0 && *first <= *last;
}

static pc_status choose_ports(const pcclCommOptions_t *options, struct pc_settings *settings, pc_error *error) {
    settings->port_min = options->port_min;
    settings->port_max = options->port_max != 0 ? options->port_max : options->port_min;
    if (settings->port_min > settings->port_max || (settings->port_min == 0 && settings->port_max != 0)) {
        return pc_error_set(error, pcclInvalidArgument, "ports %u to %u are no range", (unsigned)options->port_min,
                            (unsigned)options->port_max);
    }
    const char *text = settings->port_max == 0 ? variable("PCCL_PORT_RANGE") : NULL;
    uint64_t first = 0, last = 0;
    if (text == NULL) return pcclSuccess;
    if (!parse_ports(text, &first, &last)) {
        return bad(error, "PCCL_PORT_RANGE", text, "ports as first-last, such as 50000-50100");
    }
    settings->port_min = (uint16_t)first;
    settings->port_max = (uint16_t)last;
    return pcclSuccess;
}

static pc_status choose_congestion(const char *explicit_name, struct pc_settings *settings, pc_error *error) {
    const struct text text = choose_text("congestion", explicit_name, "PCCL_CONGESTION");
    PC_TRY(copy_text(text, settings->congestion, sizeof settings->congestion, error));
    const char *name = settings->congestion;
    if (name[0] == '\0' || strcmp(name, "system") == 0) return pcclSuccess;
    const int failure = pc_sock_check_congestion(name);
    if (failure == 0) return pcclSuccess;
    pc_error_hint(error, "see net.ipv4.tcp_allowed_congestion_control");
    return pc_error_set(error, pcclInvalidArgument, "%s: TCP congestion control '%s' cannot be used here: %s",
                        text.name, name, strerror(failure));
}

static pc_status keep_key(const uint8_t *key, size_t len, struct pc_settings *settings, pc_error *error) {
    if (len > PC_RUN_KEY_MAX) {
        return pc_error_set(error, pcclInvalidArgument, "a run key of more than %d bytes", PC_RUN_KEY_MAX);
    }
    settings->run_key = malloc(len);
    if (settings->run_key == NULL) return pc_error_set(error, pcclNoMemory, "no memory for the run key");
    memcpy(settings->run_key, key, len);
    settings->run_key_len = len;
    return pcclSuccess;
}

static pc_status read_key_file(const char *path, struct pc_settings *settings, pc_error *error) {
    uint8_t key[PC_RUN_KEY_MAX + 3]; /* one more than what may be, to see that there is more */
    FILE *file = fopen(path, "re");
    size_t len = file != NULL ? fread(key, 1, sizeof key, file) : 0;
    const int failure = file == NULL || ferror(file) != 0 ? errno : 0;
    if (file != NULL) (void)fclose(file);
    if (failure != 0) return unusable_file(error, "PCCL_RUN_KEY_FILE", path, failure);
    if (len == sizeof key) return bad(error, "PCCL_RUN_KEY_FILE", path, "a file of at most 4096 bytes");
    /* Editors end a file with a newline, which nobody means. */
    while (len > 0 && (key[len - 1] == '\n' || key[len - 1] == '\r')) len--;
    if (len == 0) return bad(error, "PCCL_RUN_KEY_FILE", path, "a file that is not empty");
    return keep_key(key, len, settings, error);
}

static pc_status choose_key(const uint8_t *key, size_t len, struct pc_settings *settings, pc_error *error) {
    if (key != NULL && len > 0) return keep_key(key, len, settings, error);
    const char *path = variable("PCCL_RUN_KEY_FILE");
    return path != NULL ? read_key_file(path, settings, error) : pcclSuccess;
}

/* Settings ------------------------------------------------------------------------------------------------------ */

static pc_status load_addresses(const pcclCommOptions_t *options, struct pc_settings *settings, pc_error *error) {
    if (options->master == NULL) return pc_error_set(error, pcclInvalidArgument, "no address of the master");
    PC_TRY(pc_endpoint_parse(options->master, CCOIP_PROTOCOL_PORT_MASTER, &settings->master, error));
    if (settings->master.host[0] == '\0' || settings->master.port == 0) {
        return pc_error_set(error, pcclInvalidArgument, "'%s' is no address of a master", options->master);
    }
    const struct text advertise = choose_text("advertise", options->advertise, "PCCL_ADVERTISE");
    if (advertise.value != NULL) {
        pc_error ignored = {0};
        const char *host = settings->advertise.host;
        const bool parsed = pc_endpoint_parse(advertise.value, 0, &settings->advertise, &ignored) == pcclSuccess;
        const bool nowhere = parsed && (host[0] == '\0' || strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0);
        if (!parsed || nowhere || (settings->advertise.has_port && settings->advertise.port == 0)) {
            return bad(error, advertise.name, advertise.value,
                       "host or host:port at which other hosts reach this one");
        }
    }
    PC_TRY(choose_algorithm(&settings->algorithm, error));
    const struct text ifname = choose_text("ifname", options->ifname, "PCCL_SOCKET_IFNAME");
    PC_TRY(copy_text(ifname, settings->ifname, sizeof settings->ifname, error));
    struct pc_address any;
    if (settings->ifname[0] != '\0' && pc_interface_addresses(settings->ifname, &any, 1) == 0) {
        return bad(error, ifname.name, ifname.value,
                   "the name of an interface that is up here and has an address");
    }
    PC_TRY(choose_ports(options, settings, error));
    /* A port that is told to others and no other wish: it is the one to listen at. */
    if (settings->advertise.has_port && settings->port_max == 0) {
        settings->port_min = settings->port_max = settings->advertise.port;
    }
    return pcclSuccess;
}

static pc_status load_peer(const pcclCommOptions_t *options, struct pc_settings *settings, pc_error *error) {
    settings->group = options->peer_group;
    settings->observer = options->observer;
    PC_TRY(load_addresses(options, settings, error));
    PC_TRY(choose_threads(&settings->threads, error));
    PC_TRY(choose_connections(options->connections, settings->threads, &settings->connections, error));
    PC_TRY(choose_shared_memory(&settings->shared_memory, error));
    PC_TRY(choose_ms(options->dead_timeout_ms, "PCCL_DEAD_TIMEOUT", PC_DEFAULT_DEAD_MS, &settings->dead_timeout_ms,
                     error));
    PC_TRY(choose_ms(options->op_timeout_ms, "PCCL_OP_TIMEOUT", PC_DEFAULT_OP_MS, &settings->op_timeout_ms, error));
    PC_TRY(choose_ms(options->connect_timeout_ms, "PCCL_CONNECT_TIMEOUT", PC_DEFAULT_CONNECT_MS,
                     &settings->connect_timeout_ms, error));
    PC_TRY(choose_congestion(options->congestion, settings, error));
    return choose_key(options->run_key, options->run_key_len, settings, error);
}

pc_status pc_settings_of_peer(const pcclCommOptions_t *options, struct pc_settings *settings, pc_error *error) {
    memset(settings, 0, sizeof *settings);
    const pc_status status = load_peer(options, settings, error);
    if (status != pcclSuccess) pc_settings_fini(settings);
    return status;
}

static pc_status load_master(const pcclMasterOptions_t *options, struct pc_settings *settings, pc_error *error) {
    const char *listen = options->listen != NULL ? options->listen : "";
    PC_TRY(pc_endpoint_parse(listen, CCOIP_PROTOCOL_PORT_MASTER, &settings->master, error));
    PC_TRY(choose_ms(options->dead_timeout_ms, "PCCL_DEAD_TIMEOUT", PC_DEFAULT_DEAD_MS, &settings->dead_timeout_ms,
                     error));
    PC_TRY(choose_ms(options->join_timeout_ms, "PCCL_JOIN_TIMEOUT", PC_DEFAULT_JOIN_MS, &settings->join_timeout_ms,
                     error));
    settings->connect_timeout_ms = PC_DEFAULT_CONNECT_MS;
    PC_TRY(choose_congestion(NULL, settings, error));
    return choose_key(options->run_key, options->run_key_len, settings, error);
}

pc_status pc_settings_of_master(const pcclMasterOptions_t *options, struct pc_settings *settings, pc_error *error) {
    memset(settings, 0, sizeof *settings);
    const pc_status status = load_master(options, settings, error);
    if (status != pcclSuccess) pc_settings_fini(settings);
    return status;
}

void pc_settings_fini(struct pc_settings *settings) {
    if (settings->run_key != NULL) memset(settings->run_key, 0, settings->run_key_len);
    free(settings->run_key);
    settings->run_key = NULL;
    settings->run_key_len = 0;
}

/* The process --------------------------------------------------------------------------------------------------- */

static atomic_bool log_chosen;
static pthread_mutex_t process_lock = PTHREAD_MUTEX_INITIALIZER;

/* user: the stream. */
static void write_line(void *user, pcclLogLevel_t level, const char *line) {
    static const char *const names[] = {"off", "FATAL", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"};
    struct timespec now;
    struct tm local;
    char stamp[32] = "";
    if (clock_gettime(CLOCK_REALTIME, &now) == 0 && localtime_r(&now.tv_sec, &local) != NULL) {
        (void)strftime(stamp, sizeof stamp, "%H:%M:%S", &local);
    }
    (void)fprintf(user, "%s.%03ld pccl %s %s\n", stamp, now.tv_nsec / 1000000, names[level], line);
}

void pc_config_set_log(pcclLogLevel_t level, pcclLogCallback_t callback, void *user) {
    atomic_store(&log_chosen, true);
    if (callback != NULL) pc_log_install(level, callback, user);
    else pc_log_install(level, write_line, stderr);
}

/* %h becomes the host's name and %p the process id. False: the path is too long. */
static bool expand_path(const char *pattern, char *out, size_t out_bytes) {
    char host[HOST_NAME_MAX + 1] = "", process[24];
    size_t len = 0;
    (void)gethostname(host, sizeof host - 1);
    (void)snprintf(process, sizeof process, "%ld", (long)getpid());
    for (const char *at = pattern; *at != '\0'; at++) {
        const bool is_host = at[0] == '%' && at[1] == 'h', is_process = at[0] == '%' && at[1] == 'p';
        const char *part = is_host ? host : is_process ? process : at;
        const size_t part_len = is_host || is_process ? strlen(part) : 1;
        if (len + part_len >= out_bytes) return false;
        memcpy(out + len, part, part_len);
        len += part_len;
        if (is_host || is_process) at++;
    }
    out[len] = '\0';
    return true;
}

/* path empty: standard error. */
static pc_status choose_log(char *path, size_t path_bytes, pc_error *error) {
    const char *pattern = variable("PCCL_DEBUG_FILE");
    path[0] = '\0';
    if (pattern == NULL || expand_path(pattern, path, path_bytes)) return pcclSuccess;
    return bad(error, "PCCL_DEBUG_FILE", pattern, "a shorter path");
}

/* Where lines go. Never closed: another thread may be writing a line at any time. */
static pc_status open_log(FILE **stream, pc_error *error) {
    char path[PATH_MAX];
    *stream = stderr;
    PC_TRY(choose_log(path, sizeof path, error));
    if (path[0] == '\0') return pcclSuccess;
    *stream = fopen(path, "ae");
    if (*stream == NULL) return unusable_file(error, "PCCL_DEBUG_FILE", path, errno);
    /* A line is one write, so that those of several processes don't mix. */
    (void)setvbuf(*stream, NULL, _IOLBF, 0);
    return pcclSuccess;
}

/* Whether it could be opened; nothing is made or emptied for that. */
static pc_status check_log(pc_error *error) {
    char path[PATH_MAX], folder[PATH_MAX];
    struct stat found;
    PC_TRY(choose_log(path, sizeof path, error));
    if (path[0] == '\0') return pcclSuccess;
    if (stat(path, &found) == 0) {
        const int failure = S_ISDIR(found.st_mode) ? EISDIR : access(path, W_OK) != 0 ? errno : 0;
        return failure == 0 ? pcclSuccess : unusable_file(error, "PCCL_DEBUG_FILE", path, failure);
    }
    if (errno != ENOENT) return unusable_file(error, "PCCL_DEBUG_FILE", path, errno);
    const char *last = strrchr(path, '/');
    if (last == NULL) (void)snprintf(folder, sizeof folder, ".");
    else (void)snprintf(folder, sizeof folder, "%.*s", (int)(last - path + 1), path);
    if (access(folder, W_OK | X_OK) == 0) return pcclSuccess;
    return unusable_file(error, "PCCL_DEBUG_FILE", path, errno);
}

static pc_status choose_level(pcclLogLevel_t *level, pc_error *error) {
    static const struct {
        const char *name;
        pcclLogLevel_t level;
    } names[] = {
        {"none", pcclLogOff},  {"off", pcclLogOff},        {"fatal", pcclLogFatal}, {"err", pcclLogError},
        {"error", pcclLogError}, {"warn", pcclLogWarn},    {"warning", pcclLogWarn}, {"info", pcclLogInfo},
        {"debug", pcclLogDebug}, {"trace", pcclLogTrace},
    };
    const char *text = variable("PCCL_LOG_LEVEL");
    *level = pcclLogWarn;
    if (text == NULL) return pcclSuccess;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcasecmp(text, names[i].name) != 0) continue;
        *level = names[i].level;
        return pcclSuccess;
    }
    return bad(error, "PCCL_LOG_LEVEL", text, "TRACE, DEBUG, INFO, WARN, ERR, FATAL or NONE");
}

/* Levenshtein's distance, for names of at most 63 characters. */
static size_t distance(const char *a, const char *b) {
    size_t row[64];
    const size_t len = pc_min_size(strlen(b), 63);
    for (size_t j = 0; j <= len; j++) row[j] = j;
    for (size_t i = 0; a[i] != '\0' && i < 63; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < len; j++) {
            const size_t replaced = diagonal + (a[i] != b[j] ? 1 : 0);
            diagonal = row[j + 1];
            row[j + 1] = pc_min_size(replaced, pc_min_size(row[j], row[j + 1]) + 1);
        }
    }
    return row[len];
}

/* PCCL_CFLAGS is read by the build. */
static const char *const known[] = {
    "PCCL_ADVERTISE",    "PCCL_ALGO",         "PCCL_CFLAGS",       "PCCL_CONGESTION", "PCCL_CONNECT_TIMEOUT", "PCCL_DEAD_TIMEOUT",
    "PCCL_DEBUG_FILE",   "PCCL_JOIN_TIMEOUT", "PCCL_LOG_LEVEL",  "PCCL_NCONNS",          "PCCL_NTHREADS",        "PCCL_OP_TIMEOUT",
    "PCCL_PORT_RANGE",   "PCCL_RUN_KEY_FILE", "PCCL_SHM",          "PCCL_SOCKET_IFNAME",
};

/* A slip of the pen is told from a name that was never meant to be one of these. */
static void warn_unknown(const char *entry) {
    char name[64] = {0};
    const size_t len = pc_min_size(strcspn(entry, "="), sizeof name - 1);
    const char *nearest = known[0];
    memcpy(name, entry, len);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i]) == 0) return;
        if (distance(name, known[i]) < distance(name, nearest)) nearest = known[i];
    }
    if (2 * distance(name, nearest) + strlen("PCCL_") <= len) {
        PC_LOG(pcclLogWarn, "unknown environment variable %s; did you mean %s? (`pccl env` lists them)", name, nearest);
    } else {
        PC_LOG(pcclLogWarn, "unknown environment variable %s (`pccl env` lists those there are)", name);
    }
}

static pc_status process_once(pc_error *error) {
    static bool done;
    if (done) return pcclSuccess;
    pcclLogLevel_t level;
    PC_TRY(choose_level(&level, error));
    if (!atomic_load(&log_chosen)) {
        FILE *stream;
        PC_TRY(open_log(&stream, error));
        pc_log_install(level, write_line, stream);
    }
    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        if (strncmp(*entry, "PCCL_", 5) == 0) warn_unknown(*entry);
    }
    done = true;
    return pcclSuccess;
}

pc_status pc_config_process(pc_error *error) {
    (void)pthread_mutex_lock(&process_lock);
    const pc_status status = process_once(error);
    (void)pthread_mutex_unlock(&process_lock);
    return status;
}

pc_status pc_config_check(pc_error *error) {
    const pcclCommOptions_t peer = {.master = "localhost"};
    const pcclMasterOptions_t master = {0};
    struct pc_settings settings;
    pcclLogLevel_t level;
    PC_TRY(choose_level(&level, error));
    if (!atomic_load(&log_chosen)) PC_TRY(check_log(error));
    PC_TRY(pc_settings_of_peer(&peer, &settings, error));
    pc_settings_fini(&settings);
    PC_TRY(pc_settings_of_master(&master, &settings, error));
    pc_settings_fini(&settings);
    return pcclSuccess;
}
