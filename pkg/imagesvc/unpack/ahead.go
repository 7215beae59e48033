package unpack

import (
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/readahead"
)

const (
	// aheadBlocks of aheadSize bytes may wait: 1 MiB a layer.
	aheadSize   = 64 << 10
	aheadBlocks = 16
)

var aheadPool = sync.Pool{New: func() any {
	blocks := make([][]byte, aheadBlocks)
	for i := range blocks {
		blocks[i] = make([]byte, aheadSize)
	}
	return &blocks
}}

// ReadAhead reads r in a goroutine of its own, so that receiving, hashing and decompressing go on while files are
// written. The stop function waits for that goroutine; r is the caller's again when it
// returns. It may be called again.
func ReadAhead(r io.Reader) (io.Reader, func() error, error) {
	blocks := aheadPool.Get().(*[][]byte)
	ahead, err := readahead.NewReaderBuffer(r, *blocks)
	if err != nil {
		return nil, nil, fmt.Errorf("start reading ahead: %w", err)
	}
	return ahead, sync.OnceValue(func() error {
		defer aheadPool.Put(blocks)
		return ahead.Close()
	}), nil
}

// limited ends reading with ErrInvalid at the first byte beyond the limit.
type limited struct {
	r     io.Reader
	limit int64 // bytes; 0 is none
	read  int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.limit <= 0 {
		return l.r.Read(p)
	}
	if left := l.limit - l.read; int64(len(p)) > left+1 {
		p = p[:left+1]
	}
	n, err := l.r.Read(p)
	l.read += int64(n)
	if l.read > l.limit {
		return n, errTooLarge(l.limit)
	}
	return n, err
}
