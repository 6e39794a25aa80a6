//go:build linux

package users

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sluice-lb/sluice/testenv"
)

// ticks of CPU time a second, in /proc (USER_HZ, the same on every architecture that Go runs on).
const ticks = 100

// cost is CPU time in seconds since some beginning.
type cost struct {
	busy    float64 // of a core: all but idle
	softirq float64 // of it in softirq
	process float64 // of a process and its children
}

// readCost reads what a core and a process have used; without a process only the core.
func readCost(core int, p *testenv.Process) (c cost, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cost{}, err
	}
	if c, err = parseCore(string(stat), core); err != nil || p == nil {
		return c, err
	}
	// It leads a process group of its own.
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return cost{}, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended meanwhile
		}
		if group, used, err := parseProcess(string(text)); err == nil && group == p.PID() {
			c.process += used
		}
	}
	return c, nil
}

// parseCore reads the line of a core in /proc/stat.
func parseCore(text string, core int) (cost, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != "cpu"+strconv.Itoa(core) {
			continue
		}
		// user, nice, system, idle, iowait, irq, softirq, steal
		var t [8]float64
		for i := range t {
			n, err := strconv.ParseUint(f[1+i], 10, 64)
			if err != nil {
				return cost{}, fmt.Errorf("/proc/stat: %w", err)
			}
			t[i] = float64(n) / ticks
		}
		return cost{busy: t[0] + t[1] + t[2] + t[5] + t[6], softirq: t[6]}, nil
	}
	return cost{}, fmt.Errorf("/proc/stat has no line of cpu%d", core)
}

// parseProcess reads the process group and the CPU seconds, user and system, of a /proc/PID/stat.
func parseProcess(text string) (group int, used float64, err error) {
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // the name may hold anything
	if len(f) < 13 {
		return 0, 0, fmt.Errorf("found %d fields after the name, expected at least 13", len(f))
	}
	group, err = strconv.Atoi(f[2])
	if err != nil {
		return 0, 0, err
	}
	for _, field := range f[11:13] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, 0, err
		}
		used += float64(n) / ticks
	}
	return group, used, nil
}
