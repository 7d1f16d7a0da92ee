/* The first process of every pod: it holds the pod's namespaces and collects orphans. Nothing else. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void quit(int number) { _exit(number == SIGINT || number == SIGTERM ? 0 : 1); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0) {} }

int main(void) {
    signal(SIGINT, quit);
    signal(SIGTERM, quit);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
