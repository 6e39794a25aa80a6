//go:build linux

package veth

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// first is the nice value of the generator, which sets it itself, and of the systems.
//
// The two must have the same: the scheduler groups the processes of a session (autogroups in sched(7)), and gives a group on each core
// what its threads there weigh of all its threads. Beside a generator with the highest weight on the first core, a system with the
// usual one would get a hundredth of the second core as soon as anybody else wants it.
const first = -20

// goFirst puts the session, generator and systems with it, before all others on the machine, until undo.
func goFirst() (undo func() error, err error) {
	const file = "/proc/self/autogroup"
	text, err := os.ReadFile(file)
	if os.IsNotExist(err) { // no autogroups: nice values are all there is
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, err
	}
	_, before, found := strings.Cut(strings.TrimSpace(string(text)), " nice ") // as in "/autogroup-25 nice 0"
	if !found {
		return nil, fmt.Errorf("read %s: found %q, expected a nice value", file, text)
	}
	set := func(nice string) error {
		if err := os.WriteFile(file, []byte(nice), 0); err != nil {
			return fmt.Errorf("set the priority of the session: %w", err)
		}
		return nil
	}
	return func() error { return set(before) }, set(strconv.Itoa(first))
}
