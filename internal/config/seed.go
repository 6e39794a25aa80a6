package config

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sluice-lb/sluice/internal/seed"
)

// Seed is the secret that the nodes of a group share, as package seed reads it. It prints as "secret" whatever the verb.
type Seed [32]byte

// IsZero reports whether no seed was read.
func (s Seed) IsZero() bool { return s == Seed{} }

// Format writes "secret".
func (s Seed) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "secret") }

// MarshalText returns "secret".
func (s Seed) MarshalText() ([]byte, error) { return []byte("secret"), nil }

// EnsureSeed returns the seed of a node whose file names none. It is kept in the file "seed" in dir, which is made with
// fresh random bytes when it is not there, so that the node's choices stay the same from one start to the next.
func EnsureSeed(dir string) (Seed, error) {
	path := filepath.Join(dir, "seed")
	found, _, err := seed.Read(path)
	if err == nil {
		return found, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Seed{}, fmt.Errorf("read seed %s: %w; delete the file to get a new one, or set another state_dir", path, err)
	}
	if err := writeSeed(dir, path); err != nil {
		return Seed{}, fmt.Errorf("make seed %s: %w; set state_dir to a directory that can be written", path, err)
	}
	found, _, err = seed.Read(path)
	if err != nil {
		return Seed{}, fmt.Errorf("read seed %s: %w", path, err)
	}
	return found, nil
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
