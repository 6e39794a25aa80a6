package probe

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// tlsCache holds what was read from the files of checks, for as long as the files stay as they were. There is an entry for every
// tls that any check has had.
type tlsCache struct {
	mu      sync.Mutex
	entries map[config.CheckTLS]tlsEntry
}

type tlsEntry struct {
	files  [3]fileStamp // CAFile, CertFile, KeyFile
	config *tls.Config
}

// fileStamp tells whether a file is another than before. Zero: there is none.
type fileStamp struct {
	size     int64
	modified time.Time
}

// config returns how to speak TLS with t, for the caller to change.
func (c *tlsCache) config(t *Target) (*tls.Config, error) {
	common, err := c.common(*t.Check.TLS)
	if err != nil {
		return nil, err
	}
	own := common.Clone()
	own.ServerName = t.Check.TLS.ServerName
	if own.ServerName == "" {
		own.ServerName = t.host()
	}
	if host, _, err := net.SplitHostPort(own.ServerName); err == nil {
		own.ServerName = host
	}
	return own, nil
}

// common returns what all backends of a check have in common.
func (c *tlsCache) common(of config.CheckTLS) (*tls.Config, error) {
	e := tlsEntry{config: &tls.Config{InsecureSkipVerify: !of.Verify}}
	for i, path := range []string{of.CAFile, of.CertFile, of.KeyFile} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, unreadable(err)
		}
		e.files[i] = fileStamp{info.Size(), info.ModTime()}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.entries[of]; ok && known.files == e.files {
		return known.config, nil
	}
	if of.CAFile != "" {
		pem, err := os.ReadFile(of.CAFile)
		if err != nil {
			return nil, unreadable(err)
		}
		e.config.RootCAs = x509.NewCertPool()
		if !e.config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, lack("tls.ca_file: there is no certificate in " + of.CAFile)
		}
	}
	if of.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(of.CertFile, of.KeyFile)
		if err != nil {
			return nil, unreadable(err)
		}
		e.config.Certificates = []tls.Certificate{pair}
	}
	if c.entries == nil {
		c.entries = map[config.CheckTLS]tlsEntry{}
	}
	c.entries[of] = e
	return e.config, nil
}

// unreadable is an error of a file of a check: this node's, not the backend's.
func unreadable(err error) error {
	return lack(fmt.Sprintf("tls: %v; sluice-healthd reads the file as its own user", err))
}
