package shm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sluice-lb/sluice/testenv"
)

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// checkMemory fails unless m is zeroed, writable memory of the wanted size, the same through Words and Bytes.
func checkMemory(t *testing.T, m *Memory, size int) {
	t.Helper()
	words := m.Words()
	if len(m.Bytes()) != size || cap(m.Bytes()) < size || len(words) != size/8 {
		t.Fatalf("%d bytes and %d words, want %d and %d", len(m.Bytes()), len(words), size, size/8)
	}
	if at := uintptr(unsafe.Pointer(&words[0])); at%LineBytes != 0 {
		t.Errorf("the memory begins at %#x, not on a cache line", at)
	}
	for i, w := range words {
		if w != 0 {
			t.Fatalf("word %d is %#x at first", i, w)
		}
	}
	words[0], words[len(words)-1] = 0x0101010101010101, 0x0202020202020202
	if b := m.Bytes(); b[0] != 1 || b[7] != 1 || b[8] != 0 || b[size-1] != 2 {
		t.Errorf("bytes do not show what was written to words")
	}
}

func TestMemfd(t *testing.T) {
	before := openFiles(t)
	for _, size := range []int{64, 128, 4096, 4160, 1 << 20} {
		m, err := NewMemfd("sluice-test", size)
		if err != nil {
			t.Fatal(err)
		}
		checkMemory(t, m, size)

		// Another mapping of the descriptor, as a successor makes it, is the same memory.
		other, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(other, m.Bytes()) {
			t.Errorf("%d bytes: a second mapping differs", size)
		}
		if atomic.AddUint64(&m.Words()[size/8-1], 1); other[size-8] != 3 {
			t.Errorf("%d bytes: a second mapping does not follow", size)
		}

		// Nobody can take memory away from those who have it mapped.
		for _, length := range []int64{0, 1 << 30} {
			if err := unix.Ftruncate(m.FD(), length); !errors.Is(err, unix.EPERM) {
				t.Errorf("%d bytes: ftruncate to %d: %v, want EPERM", size, length, err)
			}
		}
		fd := m.FD()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil || m.FD() != -1 || m.Bytes() != nil || m.Words() != nil {
			t.Errorf("second close: %v; descriptor %d, %d bytes", err, m.FD(), len(m.Bytes()))
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("descriptor %d is open after close: %v", fd, err)
		}
		// What was shared stays for who shares it.
		if other[0] != 1 {
			t.Errorf("%d bytes: the second mapping lost its contents", size)
		}
		if err := unix.Munmap(other); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// A name and pages that are there from the beginning can be seen from outside.
func TestMemfdIsPopulated(t *testing.T) {
	const size = 1 << 22
	m, err := NewMemfd("sluice-test-populated", size)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, entry, found := strings.Cut(string(smaps), "/memfd:sluice-test-populated")
	if !found {
		t.Fatal("no mapping with the memfd's name")
	}
	field := "\nRss:"
	if m.Huge() {
		field = "\nShared_Hugetlb:"
		if !strings.Contains(entry, field) {
			field = "\nPrivate_Hugetlb:"
		}
	}
	_, entry, _ = strings.Cut(entry, field)
	var kb int
	if _, err := fmt.Sscan(entry, &kb); err != nil {
		t.Fatal(err)
	}
	if kb < size>>10 {
		t.Errorf("%d KiB of %d are backed by pages", kb, size>>10)
	}
}

func TestRefusals(t *testing.T) {
	before := openFiles(t)
	for _, c := range []struct {
		name string
		size int
		want string
	}{
		{"x", 0, "positive multiple of 64"},
		{"x", -64, "positive multiple of 64"},
		{"x", 100, "positive multiple of 64"},
		{"x", 1 << 55, "mmap: cannot allocate memory; is there so much free memory"},
		{strings.Repeat("x", 300), 4096, "memfd_create: invalid argument"},
	} {
		m, err := NewMemfd(c.name, c.size)
		if err == nil {
			t.Fatalf("memfd of %d bytes: no error, %d bytes", c.size, len(m.Bytes()))
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("memfd of %d bytes: %q, want %q", c.size, err, c.want)
		}
	}
	for _, words := range []int{0, -8, 4, 12, 1 << 29} {
		if _, _, err := NewArrayMap("x", words); err == nil || !strings.Contains(err.Error(), "positive multiple of 8") {
			t.Errorf("array of %d words: %v", words, err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestArrayMap(t *testing.T) {
	testenv.RequireRoot(t)
	before := openFiles(t)
	for _, words := range []int{8, 512, 520, 1 << 16} {
		m, array, err := NewArrayMap("sluice_test_with_a_long_name", words)
		if err != nil {
			t.Fatal(err)
		}
		checkMemory(t, m, words*8)
		if m.FD() != array.FD() || m.Huge() {
			t.Errorf("descriptor %d, the map's is %d; huge %v", m.FD(), array.FD(), m.Huge())
		}
		var line [8]uint64
		if err := array.Lookup(uint32(words/8-1), &line); err != nil || line[7] != m.Words()[words-1] {
			t.Errorf("%d words: the kernel sees %#x, %v", words, line, err)
		}
		if array.MaxEntries() != uint32(words/8) || array.ValueSize() != LineBytes {
			t.Errorf("%d words: %v", words, array)
		}
		// The map outlives the mapping, and the other way round with the next size.
		if words == 8 {
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			if err := array.Lookup(uint32(0), &line); err != nil || line[7] != 0x0202020202020202 {
				t.Errorf("the map without its mapping: %#x, %v", line, err)
			}
			if err := array.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := array.Close(); err != nil {
			t.Fatal(err)
		}
		if m.Words()[words-1] != 0x0202020202020202 {
			t.Error("the mapping without its map lost its contents")
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after > before+1 { // the BPF library may keep one for its probes
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// reserveHugePages has the kernel reserve so many huge pages more until the test ends, and returns how many it had.
func reserveHugePages(t *testing.T, more int) (have int) {
	t.Helper()
	testenv.RequireRoot(t)
	const knob = "/proc/sys/vm/nr_hugepages"
	old, err := os.ReadFile(knob)
	if err != nil {
		t.Fatal(err)
	}
	if have, err = strconv.Atoi(strings.TrimSpace(string(old))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(knob, old, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(knob, []byte(strconv.Itoa(have+more)), 0); err != nil {
		t.Fatal(err)
	}
	return have
}

// With huge pages reserved, memory that fills at least one lies on them; without, and when they run out, on ordinary ones.
func TestHugePages(t *testing.T) {
	have := reserveHugePages(t, 4)
	// Two pages, the second hardly used. Huge pages are 2 MiB on amd64 and on arm64 with 4 KiB pages.
	const size = 2<<20 + 64
	m, err := NewMemfd("sluice-test-huge", size)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !m.Huge() {
		t.Error("4 huge pages were reserved, and not used for 2 MiB")
	}
	checkMemory(t, m, size)

	small, err := NewMemfd("sluice-test-small", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	if small.Huge() {
		t.Error("1 MiB takes a whole huge page")
	}

	large, err := NewMemfd("sluice-test-large", (have+6)<<21)
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if large.Huge() {
		t.Error("more huge pages are in use than there are")
	}
	checkMemory(t, large, (have+6)<<21)
}
