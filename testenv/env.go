//go:build linux

package testenv

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"sync"
	"sync/atomic"
)

// TB is the part of testing.TB that this package uses. It is named here so that programs that use the package, like the
// demo, do not carry the testing package.
type TB interface {
	Helper()
	Cleanup(func())
	Skip(args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// RequireRoot ends the test unless it runs as root. Under `go test -short` the test is skipped: that mode is for the
// tests that need no root. Otherwise a missing root is a failure, never a skip.
func RequireRoot(t TB) {
	t.Helper()
	if short := flag.Lookup("test.short"); short != nil && short.Value.String() == "true" {
		t.Skip("needs root: not part of -short")
	}
	if os.Geteuid() != 0 {
		t.Fatalf("this test needs root: run it as root, or run the tests that need none with `go test -short`")
	}
}

// ForTest makes an Env that is closed when the test and its subtests have ended. It requires root.
func ForTest(t TB) *Env {
	t.Helper()
	RequireRoot(t)
	e, err := New("test")
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return e
}

// Env owns namespaces and what is in them.
type Env struct {
	prefix string // of the names of its namespaces: sluice-PID-START-NAMEn

	mu         sync.Mutex
	closed     bool
	namespaces []*Namespace // in the order of their making
}

var (
	envs     atomic.Uint64 // how many this process has made: a part of the names, so that they are unique
	goodName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
)

// New makes an empty Env, after it has removed what dead processes left. The name becomes a part of the names of the
// namespaces, for a person who lists them; it need not be unique. It consists of a-z, 0-9 and inner hyphens.
func New(name string) (*Env, error) {
	if !goodName.MatchString(name) {
		return nil, fmt.Errorf("make test environment %q: bad name; use at most 32 of a-z, 0-9 and inner hyphens", name)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("make test environment %q: %w; network namespaces need root", name, os.ErrPermission)
	}
	me, err := self()
	if err != nil {
		return nil, fmt.Errorf("make test environment %q: %w", name, err)
	}
	_ = removeLeftovers() // what cannot be removed is in nobody's way: names are unique
	return &Env{prefix: fmt.Sprintf("%s-%s%d", me.prefix(), name, envs.Add(1))}, nil
}

// Namespace makes a network namespace. Its loopback is up, reverse path filters and ICMP redirects are off, and IPv6
// addresses are usable at once (no duplicate address detection, no router solicitations). The name is unique within the
// Env and consists of a-z, 0-9 and inner hyphens; [Namespace.Name] is the full one.
func (e *Env) Namespace(name string) (*Namespace, error) {
	if !goodName.MatchString(name) {
		return nil, fmt.Errorf("make namespace %q: bad name; use at most 32 of a-z, 0-9 and inner hyphens", name)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("make namespace %q: the environment is %w", name, os.ErrClosed)
	}
	ns, err := newNamespace(e.prefix + "-" + name)
	if err != nil {
		return nil, err
	}
	e.namespaces = append(e.namespaces, ns)
	return ns, nil
}

// Close kills every process inside and removes the namespaces, the last one first. It goes on after an error and
// returns all of them. Closing twice is fine.
func (e *Env) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	var errs error
	for i := len(e.namespaces) - 1; i >= 0; i-- {
		errs = errors.Join(errs, e.namespaces[i].close())
	}
	e.namespaces = nil
	if errs != nil {
		return fmt.Errorf("close test environment %s: %w", e.prefix, errs)
	}
	return nil
}
