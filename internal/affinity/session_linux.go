package affinity

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// autogroup is the nice value of the session among the sessions: sched(7), "The autogroup feature".
const autogroup = "/proc/self/autogroup"

// NiceSession gives the session of the process, everything in it, a nice value until undo is called. Where sessions share out the CPUs,
// that is where the kernel groups them and nobody has put the process into a cgroup of its own, nice values of threads count within
// their session alone. Elsewhere it does nothing: there they count by themselves.
func NiceSession(nice int) (undo func() error, err error) {
	text, err := os.ReadFile(autogroup)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	before, grouped, err := sessionNice(string(text))
	if err != nil {
		return nil, err
	}
	if !grouped {
		return func() error { return nil }, nil
	}
	set := func(nice int) error {
		if err := os.WriteFile(autogroup, []byte(strconv.Itoa(nice)), 0); err != nil {
			return fmt.Errorf("set the priority of the session: %w", err)
		}
		return nil
	}
	return func() error { return set(before) }, set(nice)
}

// sessionNice reads the file's text, as in "/autogroup-25 nice 0". It is empty for a process that is in no session's group:
// proc_sched_autogroup_show_task in kernel/sched/autogroup.c.
func sessionNice(text string) (nice int, grouped bool, err error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return 0, false, nil
	}
	if _, value, found := strings.Cut(text, " nice "); found {
		if nice, err := strconv.Atoi(value); err == nil {
			return nice, true, nil
		}
	}
	return 0, false, fmt.Errorf("read %s: found %q, expected a nice value", autogroup, text)
}
