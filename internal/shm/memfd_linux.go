package shm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// OpenMemfd maps memory that NewMemfd made in another process, or in this one before it replaced its program, through the
// descriptor by which it was handed on. It maps the whole file, on the huge pages that it was made with or on ordinary ones,
// with its contents as they are.
//
// bytes is how much of it [Memory.Bytes] gives: a multiple of 64, and no more than there is. NewMemfd rounds up to whole
// pages and the file does not say what was asked for, so the caller must know; 0 gives all.
//
// On success the Memory owns the descriptor. On an error it stays the caller's, to close: it may be something else that
// came by mistake. In both cases no program that this process starts inherits it from now on (close-on-exec).
func OpenMemfd(fd, bytes int) (*Memory, error) {
	if bytes < 0 || bytes%LineBytes != 0 {
		return nil, fmt.Errorf("memfd %d, %d bytes of it: the size must be a multiple of %d, or 0 for all", fd, bytes, LineBytes)
	}
	m, err := openMemfd(fd, bytes)
	if err != nil {
		return nil, fmt.Errorf("memfd %d: %w", fd, err)
	}
	return m, nil
}

func openMemfd(fd, bytes int) (*Memory, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("set close-on-exec: %w", err)
	}
	// Pipes, sockets and most files have no seals at all; a file on tmpfs has one that forbids others.
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil, errors.New("this is no memfd; give the descriptor that NewMemfd made")
	}
	if err != nil {
		return nil, fmt.Errorf("read seals: %w", err)
	}
	if seals&unix.F_SEAL_SHRINK == 0 {
		return nil, fmt.Errorf("not sealed against shrinking (seals %#x), so others could make every access fail; give the descriptor that NewMemfd made", seals)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	length := int(st.Size)
	if length <= 0 || length%LineBytes != 0 || int64(length) != st.Size {
		return nil, fmt.Errorf("it holds %d bytes, not a positive multiple of %d; give the descriptor that NewMemfd made", st.Size, LineBytes)
	}
	if bytes > length {
		return nil, fmt.Errorf("it holds %s, less than the %s asked for", size(length), size(bytes))
	}
	if bytes == 0 {
		bytes = length
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return nil, fmt.Errorf("fstatfs: %w", err)
	}
	m := &Memory{fd: fd, huge: uint32(fs.Type) == unix.HUGETLBFS_MAGIC}
	if err := m.mapFile(length); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	m.bytes = m.mapping[:bytes]
	m.ownsFD = true
	return m, nil
}
