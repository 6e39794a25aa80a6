// Package seed reads the file with the secret that the nodes of a group, and the agents of their backends, share.
package seed

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Bounds of a seed, in bytes: Min without the line ends at its end, Max of the whole file.
const (
	Min = 16
	Max = 4096
)

// Read reads a seed file. The seed is the SHA-256 of its content without the line ends at its end, so that it does not matter
// which editor wrote them. mode tells who else can read it. Errors name what was found, without the path.
func Read(path string) (seed [32]byte, mode fs.FileMode, err error) {
	data, mode, err := ReadRegular(path, Max)
	if err != nil {
		return seed, 0, err
	}
	data = bytes.TrimRight(data, "\r\n")
	if len(data) < Min {
		return seed, 0, fmt.Errorf("%d bytes", len(data))
	}
	return sha256.Sum256(data), mode, nil
}

// ReadRegular reads a regular file of at most so many bytes; a seed file, or another that an operator names. Errors name what
// was found, without the path.
func ReadRegular(path string, most int64) (data []byte, mode fs.FileMode, err error) {
	data, mode, err = readRegular(path, most)
	if found := (*fs.PathError)(nil); errors.As(err, &found) {
		err = found.Err
	}
	return data, mode, err
}

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
