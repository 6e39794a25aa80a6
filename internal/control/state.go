package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The files in which a Book keeps what shall outlive the daemon. Each has one writer, and is replaced as a whole.

// savedVersion is the format of both files.
const savedVersion = 1

// savedFile is a file's content: a list of what is known about backends.
type savedFile[T any] struct {
	Version  int `json:"version"`
	Backends []T `json:"backends"`
}

// maxSaved bounds what is read: far above what 2^18 backends need.
const maxSaved = 256 << 20

// readState returns the list in a file. what names its content in errors: "read health …".
func readState[T any](what, path string) ([]T, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSaved {
		return nil, fmt.Errorf("read %s %s: not a regular file of a sane size; delete it", what, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	var f savedFile[T]
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("read %s %s: %w; delete the file if this stays", what, path, err)
	}
	if f.Version != savedVersion {
		return nil, fmt.Errorf("read %s %s: version %d, this program writes %d", what, path, f.Version, savedVersion)
	}
	return f.Backends, nil
}

// writeState puts a whole new file in the place of the old one, so that a crash leaves one or the other.
func writeState[T any](what, path string, list []T) (err error) {
	data, err := json.MarshalIndent(savedFile[T]{savedVersion, list}, "", " ")
	if err != nil {
		return fmt.Errorf("write %s %s: %w", what, path, err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("write %s: %w; set state_dir to a directory that can be written", what, err)
	}
	// One name, not one of many: what a crash leaves behind is overwritten.
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w; set state_dir to a directory that can be written", what, err)
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("write %s: %w", what, err)
	}
	// A directory that cannot be synced costs at most this change, and that only if the machine dies now.
	if d, err := os.Open(dir); err == nil {
		_ = errors.Join(d.Sync(), d.Close())
	}
	return nil
}
