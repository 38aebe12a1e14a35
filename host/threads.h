/* threads.h - how OpenMP's threads wait for each other. */
#ifndef HOST_THREADS_H
#define HOST_THREADS_H
/* Threads that wait shall sleep after a moment. libgomp's spin for milliseconds, and on a machine with other work the spinning ones keep
 * the working one from its core: an SAE step of the small world took 14 ms so, 5.6 ms asleep. Asleep at once, they are woken for every
 * short loop: a decoded token took 28 ms so, 22 with 1,000 turns of waiting first (bench/LOG.md). libgomp reads its variables while the
 * program is loaded, so this sets GOMP_SPINCOUNT and starts the program again, unless the environment already says what to do; where that
 * cannot be, it returns. First call of main. */
void threads_wait_asleep(char **argv);
#endif
