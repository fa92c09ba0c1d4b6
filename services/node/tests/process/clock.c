/* Has the process under test believe that it is another time: its wall clock is ahead by $HERALD_TEST_CLOCK_AHEAD_S
 * seconds, or behind if that is negative. Steady time is as it is. Preloaded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *ahead = getenv("HERALD_TEST_CLOCK_AHEAD_S");
    int result = real(clock, now);
    if (result == 0 && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += atoll(ahead);
    return result;
}
