//go:build linux

package guest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// prepare does in the guest what a system does before it runs programs: file systems, modules, environment. Then it
// chooses the test.
func prepare() error {
	for _, m := range []struct{ kind, dir string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"bpf", "/sys/fs/bpf"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
	} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for _, v := range []struct{ name, value string }{{"PATH", "/bin"}, {"HOME", "/root"}, {"TMPDIR", "/tmp"}} {
		if err := os.Setenv(v.name, v.value); err != nil {
			return err
		}
	}
	modules, err := filepath.Glob("/" + moduleDir + "/*.ko") // sorted
	if err != nil {
		return err
	}
	for _, path := range modules {
		if err := loadModule(path); err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	flag.Parse()
	err = flag.Set("test.v", "true")
	for _, word := range strings.Fields(string(line)) {
		if name, ok := strings.CutPrefix(word, testParameter); ok {
			err = errors.Join(err, flag.Set("test.run", "^"+name+"$"))
		}
		if f, ok := strings.CutPrefix(word, flagParameter); ok {
			name, value, _ := strings.Cut(f, "=")
			err = errors.Join(err, flag.Set(name, value))
		}
	}
	return err
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// KernelTrouble returns the lines of the kernel's log that speak of a bug in it.
func KernelTrouble() (lines []string, err error) {
	const readAll = 3 // SYSLOG_ACTION_READ_ALL
	buffer := make([]byte, 1<<20)
	n, err := unix.Klogctl(readAll, buffer)
	if err != nil {
		return nil, fmt.Errorf("read the kernel's log: %w", err)
	}
	for line := range strings.Lines(string(buffer[:n])) {
		for _, sign := range []string{"BUG", "WARNING", "Oops", "Call Trace", "general protection", "rcu_sched", "hung task"} {
			if strings.Contains(line, sign) {
				lines = append(lines, strings.TrimSpace(line))
				break
			}
		}
	}
	return lines, nil
}
