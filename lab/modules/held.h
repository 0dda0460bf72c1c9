/*
 * A change of the processor that the kernel would soon undo, or not outlive, is held in place with interrupts off:
 * nothing else runs there meanwhile. Whoever looks from outside says when it begins and ends, by a word in memory.
 */
#ifndef HELD_H
#define HELD_H

/*
 * After so many ticks of the time stamp counter it ends by itself: within a minute, at 1.7 GHz or more. With interrupts
 * off, no other clock is sure to go on: the kernel's own may wrap around unless somebody reads it in time.
 */
#define MOST_TICKS 100000000000ul
#define DEBUG "\001" "7" /* KERN_DEBUG: for the log, not for the console */

enum { WAITING, WANTED, HELD, ENOUGH };

int _printk(const char *format, ...);

static volatile word state = WAITING;

static word ticks(void)
{
    unsigned int low, high;

    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (word)high << 32 | low;
}

static void stay(word now)
{
    word begin = ticks();

    while (state == now && ticks() - begin < MOST_TICKS)
        asm volatile("pause");
}

static void hold(void (*change)(void), void (*restore)(void))
{
    _printk(DEBUG NAME ": told by %px\n", &state);
    stay(WAITING);
    if (state != WANTED)
        return;
    asm volatile("cli" : : : "memory");
    change();
    state = HELD;
    stay(HELD);
    restore();
    asm volatile("sti" : : : "memory");
}

#endif
