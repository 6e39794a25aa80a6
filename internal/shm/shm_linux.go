// Package shm makes memory that is shared outside this process's Go heap: with a successor that inherits a file
// descriptor, or with BPF programs through a map.
//
// [NewMemfd] and [NewArrayMap] make a [Memory], [OpenMemfd] and [OpenArrayMap] open one that was inherited; there is no other way to get one.
// Its maker owns it and closes it once; until then any goroutine may read and write the words, with sync/atomic where
// another side writes too. After Close every slice that came from it is invalid, and touching one ends the process. The
// memory begins on a page boundary, hence on that of a cache line, is zero when it is made, and is backed by pages from the
// beginning, so that no first touch costs a page fault or fails.
//
// The garbage collector knows nothing of this memory: it must hold no Go pointers.
package shm

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// LineBytes is the unit in which memory is given: a cache line, eight words.
const LineBytes = 64

// Memory is a range of mapped memory.
type Memory struct {
	mapping []byte // what is mapped: whole pages
	bytes   []byte // what was asked for: its beginning
	fd      int
	ownsFD  bool // Close closes fd; false if a map owns it
	huge    bool
}

// Bytes returns the memory.
func (m *Memory) Bytes() []byte { return m.bytes }

// Words returns the memory as words in the machine's byte order.
func (m *Memory) Words() []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(m.bytes))), len(m.bytes)/8)
}

// Uint32s returns the memory as 32-bit words that are read and written atomically, in the machine's byte order.
func (m *Memory) Uint32s() []atomic.Uint32 {
	return unsafe.Slice((*atomic.Uint32)(unsafe.Pointer(unsafe.SliceData(m.bytes))), len(m.bytes)/4)
}

// FD is the descriptor that stands for the memory: a memfd, or the map's own descriptor. It stays the Memory's or the
// map's; duplicate it to keep it. −1 after Close.
func (m *Memory) FD() int { return m.fd }

// Huge reports whether the memory lies on pages that were reserved as huge.
func (m *Memory) Huge() bool { return m.huge }

// Close unmaps the memory and closes its memfd. A map that belongs to it stays open and keeps its contents. A second
// Close does nothing.
func (m *Memory) Close() error {
	var errs []error
	if m.mapping != nil {
		if err := unix.Munmap(m.mapping); err != nil {
			errs = append(errs, fmt.Errorf("unmap %s of shared memory: %w", size(len(m.mapping)), err))
		}
		m.mapping, m.bytes = nil, nil
	}
	if m.ownsFD && m.fd >= 0 {
		if err := unix.Close(m.fd); err != nil {
			errs = append(errs, fmt.Errorf("close memfd %d: %w", m.fd, err))
		}
	}
	m.fd = -1
	return errors.Join(errs...)
}

// NewMemfd makes memory of the given number of bytes, a positive multiple of 64, that another process can map through
// the descriptor. It lies on huge pages if the kernel has enough of them reserved and at least one would be filled,
// else on ordinary ones. The file cannot shrink any more, so nobody who holds the descriptor can make an access fail.
// name shows in /proc/PID/maps.
func NewMemfd(name string, bytes int) (*Memory, error) {
	if bytes <= 0 || bytes%LineBytes != 0 {
		return nil, fmt.Errorf("memfd %s of %d bytes: the size must be a positive multiple of %d", name, bytes, LineBytes)
	}
	// Whatever keeps us from huge pages (none reserved, not built in, a limit), ordinary ones do the same work.
	if m, err := newMemfd(name, bytes, true); err == nil {
		return m, nil
	}
	m, err := newMemfd(name, bytes, false)
	if err != nil {
		return nil, fmt.Errorf("memfd %s of %s: %w; is there so much free memory, also in this process's cgroup (memory.max)?", name, size(bytes), err)
	}
	return m, nil
}

// errSmall says that a huge page would be mostly empty.
var errSmall = errors.New("smaller than a huge page")

func newMemfd(name string, bytes int, huge bool) (_ *Memory, err error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	if huge {
		flags |= unix.MFD_HUGETLB
	}
	fd, err := unix.MemfdCreate(name, flags)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	m := &Memory{fd: fd, ownsFD: true, huge: huge}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()

	// The block size of a memfd is its page size, for huge pages the default huge page size.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	page := int(st.Blksize)
	if huge && bytes < page {
		return nil, errSmall
	}
	length := (bytes + page - 1) / page * page
	if err := unix.Ftruncate(fd, int64(length)); err != nil {
		return nil, fmt.Errorf("ftruncate: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if err := m.mapFile(length); err != nil {
		return nil, err
	}
	m.bytes = m.mapping[:bytes]
	return m, nil
}

// mapFile maps length bytes of m's descriptor, with all their pages. On an error the mapping, if there is one, is Close's.
func (m *Memory) mapFile(length int) (err error) {
	if m.mapping, err = unix.Mmap(m.fd, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	// Fault all pages in now, where a lack of memory is an error and not a SIGBUS. Kernels before 5.14 cannot (EINVAL).
	if err := unix.Madvise(m.mapping, unix.MADV_POPULATE_WRITE); err != nil && err != unix.EINVAL {
		return fmt.Errorf("populate: %w", err)
	}
	return nil
}

// NewArrayMap makes a BPF array of lines of eight words (struct { __u64 word[8]; } in C, one key a line) and maps it.
// words is a positive multiple of 8. The map is the caller's to close, apart from the Memory and in any order: each
// keeps the words alive for itself. name is cut to the 15 characters that the kernel takes.
func NewArrayMap(name string, words int) (*Memory, *ebpf.Map, error) {
	const lineWords = LineBytes / 8
	// The kernel refuses arrays of 4 GiB and more.
	if words <= 0 || words%lineWords != 0 || uint64(words)*8 >= 1<<32 {
		return nil, nil, fmt.Errorf("BPF array %s of %d words: the number must be a positive multiple of %d below 2^29", name, words, lineWords)
	}
	array, err := ebpf.NewMap(&ebpf.MapSpec{
		Name:       name[:min(len(name), unix.BPF_OBJ_NAME_LEN-1)],
		Type:       ebpf.Array,
		KeySize:    4,
		ValueSize:  LineBytes,
		MaxEntries: uint32(words / lineWords),
		Flags:      unix.BPF_F_MMAPABLE,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("BPF array %s of %s: %w; %s", name, size(words*8), err, arrayHint(err))
	}
	m, err := mapArray(array, words*8)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("BPF array %s: %w", name, err), array.Close())
	}
	return m, array, nil
}

// OpenArrayMap maps a BPF array that NewArrayMap made in another process, through the descriptor by which it was handed on, with its
// contents as they are. On success the map, which owns the descriptor, is the caller's to close, apart from the Memory; on an error the
// descriptor stays the caller's.
func OpenArrayMap(fd int) (*Memory, *ebpf.Map, error) {
	// The library closes what is no map of its kind, so it gets a copy.
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("BPF array %d: %w", fd, err)
	}
	array, err := ebpf.NewMapFromFD(copied)
	if err != nil {
		return nil, nil, fmt.Errorf("BPF array %d: %w", fd, err)
	}
	if array.Type() != ebpf.Array || array.ValueSize() != LineBytes || array.Flags()&unix.BPF_F_MMAPABLE == 0 {
		return nil, nil, errors.Join(fmt.Errorf("BPF array %d: it is no mappable array of lines, but %v; give the descriptor of one that NewArrayMap made", fd, array), array.Close())
	}
	m, err := mapArray(array, int(array.MaxEntries())*LineBytes)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("BPF array %d: %w", fd, err), array.Close())
	}
	return m, array, unix.Close(fd)
}

// mapArray maps a BPF array.
func mapArray(array *ebpf.Map, bytes int) (*Memory, error) {
	m := &Memory{fd: array.FD()}
	page := os.Getpagesize()
	var err error
	if m.mapping, err = unix.Mmap(array.FD(), 0, (bytes+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("mmap %s: %w", size(bytes), err)
	}
	m.bytes = m.mapping[:bytes]
	return m, nil
}

// arrayHint says what to do about a map that the kernel refused.
func arrayHint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "run as root or with CAP_BPF (and CAP_SYS_ADMIN before kernel 5.8); before kernel 5.11 raise the memlock limit (LimitMEMLOCK=infinity)"
	case errors.Is(err, unix.ENOMEM):
		return "is there so much free memory, also in this process's cgroup (memory.max)?"
	}
	return "mappable arrays need kernel 5.5"
}

// size writes a number of bytes for people.
func size(bytes int) string {
	switch {
	case bytes >= 1<<20:
		return fmt.Sprintf("%.4g MiB", float64(bytes)/(1<<20))
	case bytes >= 1<<10:
		return fmt.Sprintf("%.4g KiB", float64(bytes)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", bytes)
}
