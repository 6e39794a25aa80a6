package config

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Seed is the secret that the nodes of a group share: the SHA-256 of the seed file's content without the line ends at
// its end. It prints as "secret" whatever the verb.
type Seed [32]byte

// IsZero reports whether no seed was read.
func (s Seed) IsZero() bool { return s == Seed{} }

// Format writes "secret".
func (s Seed) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "secret") }

// MarshalText returns "secret".
func (s Seed) MarshalText() ([]byte, error) { return []byte("secret"), nil }

// readSeed reads a seed file. Its errors name what was found, without the path.
func readSeed(path string) (seed Seed, mode fs.FileMode, err error) {
	data, mode, err := readRegular(path, maxSeed)
	if err != nil {
		return Seed{}, 0, err
	}
	data = bytes.TrimRight(data, "\r\n")
	if len(data) < minSeed {
		return Seed{}, 0, fmt.Errorf("%d bytes", len(data))
	}
	return sha256.Sum256(data), mode, nil
}

// readRegular reads a regular file of at most so many bytes. Its errors name what was found, without the path or in an
// fs.PathError.
func readRegular(path string, most int64) (data []byte, mode fs.FileMode, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	// Anything else might never end, or block.
	if !info.Mode().IsRegular() {
		return nil, 0, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	data, err = io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, 0, err
	}
	if int64(len(data)) > most {
		return nil, 0, fmt.Errorf("more than %d bytes", most)
	}
	return data, info.Mode(), nil
}

// EnsureSeed returns the seed of a node whose file names none. It is kept in the file "seed" in dir, which is made with
// fresh random bytes when it is not there, so that the node's choices stay the same from one start to the next.
func EnsureSeed(dir string) (Seed, error) {
	path := filepath.Join(dir, "seed")
	seed, _, err := readSeed(path)
	if err == nil {
		return seed, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Seed{}, fmt.Errorf("read seed %s: %w; delete the file to get a new one, or set another state_dir", path, err)
	}
	if err := writeSeed(dir, path); err != nil {
		return Seed{}, fmt.Errorf("make seed %s: %w; set state_dir to a directory that can be written", path, err)
	}
	seed, _, err = readSeed(path)
	if err != nil {
		return Seed{}, fmt.Errorf("read seed %s: %w", path, err)
	}
	return seed, nil
}

func writeSeed(dir, path string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "seed.tmp*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	random := make([]byte, 32)
	rand.Read(random)
	_, err = tmp.Write(random)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	// A link, not a rename: of two that start at once, the first one's seed holds.
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
