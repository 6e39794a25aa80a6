package shm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// childEnv makes the test binary the other process: its value is the size to ask for, and the memfd is descriptor 3.
const childEnv = "SLUICE_TEST_MEMFD_BYTES"

func TestMain(m *testing.M) {
	if asked := os.Getenv(childEnv); asked != "" {
		if err := child(asked); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child opens the memory, adds one to each word and says what it got.
func child(asked string) error {
	var size int
	if _, err := fmt.Sscan(asked, &size); err != nil {
		return err
	}
	m, err := OpenMemfd(3, size)
	if err != nil {
		return err
	}
	for i := range m.Words() {
		m.Words()[i]++
	}
	fmt.Printf("%d bytes, huge %v", len(m.Bytes()), m.Huge())
	return m.Close()
}

// duplicate returns another descriptor of the same file, which programs would inherit.
func duplicate(t *testing.T, fd int) int {
	t.Helper()
	other, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	return other
}

func closeOnExec(t *testing.T, fd int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.FD_CLOEXEC != 0
}

func TestOpenMemfd(t *testing.T) {
	before := openFiles(t)
	page := os.Getpagesize()
	for _, c := range []struct{ size, open, want int }{
		{64, 64, 64},
		{64, 0, page},
		{page, page - 64, page - 64},
		{page + 64, page + 64, page + 64},
		{page + 64, 0, 2 * page},
		{1 << 20, 1 << 20, 1 << 20},
	} {
		m, err := NewMemfd("sluice-test-open", c.size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range m.Words() {
			m.Words()[i] = uint64(i) * 0x0101010101010101
		}
		fd := duplicate(t, m.FD())
		other, err := OpenMemfd(fd, c.open)
		if err != nil {
			t.Fatal(err)
		}
		if len(other.Bytes()) != c.want || other.FD() != fd || other.Huge() != m.Huge() {
			t.Errorf("%+v: %d bytes, descriptor %d of %d, huge %v", c, len(other.Bytes()), other.FD(), fd, other.Huge())
		}
		both := min(c.size, c.want)
		if !bytes.Equal(other.Bytes()[:both], m.Bytes()[:both]) {
			t.Errorf("%+v: the contents differ", c)
		}
		if !closeOnExec(t, fd) {
			t.Errorf("%+v: programs inherit descriptor %d", c, fd)
		}
		// The memory lives as long as one has it, and is closed once.
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if last := both/8 - 1; other.Words()[last] != uint64(last)*0x0101010101010101 {
			t.Errorf("%+v: the last word is %#x after its maker closed", c, other.Words()[last])
		}
		for range 2 {
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("%+v: descriptor %d is open after close: %v", c, fd, err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// throughChild has another process add one to all words of memory of this size.
func throughChild(t *testing.T, size int, huge bool) {
	t.Helper()
	m, err := NewMemfd("sluice-test-child", size)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Huge() != huge {
		t.Fatalf("huge pages %v, want %v", m.Huge(), huge)
	}
	for i := range m.Words() {
		m.Words()[i] = uint64(i)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(duplicate(t, m.FD())), "memfd")
	defer file.Close()
	cmd := exec.Command(program)
	// The race detector would have it wait for a second at its end.
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", childEnv, size), "GORACE=atexit_sleep_ms=0")
	cmd.ExtraFiles = []*os.File{file}
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("%d bytes, huge %v", size, huge); err != nil || string(out) != want {
		t.Fatalf("the other process: %v, %q; want %q", err, out, want)
	}
	for i, w := range m.Words() {
		if w != uint64(i)+1 {
			t.Fatalf("word %d is %d after the other process, want %d", i, w, i+1)
		}
	}
}

func TestOpenMemfdInAnotherProcess(t *testing.T) { throughChild(t, 1<<16+64, false) }

func TestOpenMemfdOnHugePages(t *testing.T) {
	reserveHugePages(t, 4)
	throughChild(t, 2<<20+64, true)
}

// What is not NewMemfd's is refused, and stays as open as it was.
func TestOpenMemfdRefuses(t *testing.T) {
	before := openFiles(t)
	memfd := func(length int64, seals int) func(t *testing.T) int {
		return func(t *testing.T) int {
			fd, err := unix.MemfdCreate("sluice-test-refused", unix.MFD_ALLOW_SEALING)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Ftruncate(fd, length); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
				t.Fatal(err)
			}
			return fd
		}
	}
	file := func(dir string) func(t *testing.T) int {
		return func(t *testing.T) int {
			if dir == "" {
				dir = t.TempDir()
			}
			path := filepath.Join(dir, fmt.Sprintf("sluice-test-%d", os.Getpid()))
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Remove(path), unix.Ftruncate(fd, 4096)); err != nil {
				t.Fatal(err)
			}
			return fd
		}
	}
	for _, c := range []struct {
		name  string
		open  func(t *testing.T) int
		bytes int
		want  string
	}{
		{"pipe", func(t *testing.T) int {
			var ends [2]int
			if err := unix.Pipe(ends[:]); err != nil {
				t.Fatal(err)
			}
			unix.Close(ends[1])
			return ends[0]
		}, 0, "no memfd"},
		{"file", file(""), 4096, ""},
		{"file on tmpfs", file("/dev/shm"), 4096, ""},
		{"unsealed", memfd(4096, 0), 4096, "not sealed against shrinking (seals 0x0)"},
		{"other seals", memfd(4096, unix.F_SEAL_GROW), 4096, "not sealed against shrinking (seals 0x4)"},
		{"empty", memfd(0, unix.F_SEAL_SHRINK), 0, "holds 0 bytes"},
		{"odd size", memfd(100, unix.F_SEAL_SHRINK), 0, "holds 100 bytes, not a positive multiple of 64"},
		{"too small", memfd(4096, unix.F_SEAL_SHRINK), 8192, "holds 4 KiB, less than the 8 KiB asked for"},
		{"not writable", memfd(4096, unix.F_SEAL_SHRINK|unix.F_SEAL_WRITE), 4096, "mmap: operation not permitted"},
		{"not in lines", memfd(4096, unix.F_SEAL_SHRINK), 100, "multiple of 64"},
		{"negative", memfd(4096, unix.F_SEAL_SHRINK), -64, "multiple of 64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fd := c.open(t)
			m, err := OpenMemfd(fd, c.bytes)
			if err == nil {
				t.Fatalf("opened, with %d bytes", len(m.Bytes()))
			}
			if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), fmt.Sprintf("memfd %d", fd)) {
				t.Errorf("%q, want %q", err, c.want)
			}
			if strings.HasPrefix(c.name, "file") && !strings.Contains(err.Error(), "no memfd") && !strings.Contains(err.Error(), "not sealed") {
				t.Errorf("%q does not say what is wrong", err)
			}
			// It is still the caller's.
			if err := unix.Close(fd); err != nil {
				t.Errorf("close descriptor %d after the refusal: %v", fd, err)
			}
			if _, err := OpenMemfd(fd, c.bytes); err == nil {
				t.Error("a closed descriptor was opened")
			}
		})
	}
	if _, err := OpenMemfd(-1, 0); err == nil || !strings.Contains(err.Error(), "memfd -1: ") {
		t.Errorf("descriptor −1: %v", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(maps), "sluice-test-refused") {
		t.Error("a refused memfd is mapped")
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
