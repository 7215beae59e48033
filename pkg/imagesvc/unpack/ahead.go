package unpack

import (
	"context"
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

// source ends reading, between two reads, with the context's error, or with ErrInvalid at the first byte beyond the limit.
type source struct {
	ctx   context.Context
	r     io.Reader
	limit int64 // bytes; 0 is none
	read  int64
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	if s.limit <= 0 {
		return s.r.Read(p)
	}
	if left := s.limit - s.read; int64(len(p)) > left+1 {
		p = p[:left+1]
	}
	n, err := s.r.Read(p)
	s.read += int64(n)
	if s.read > s.limit {
		return n, errTooLarge(s.limit)
	}
	return n, err
}
