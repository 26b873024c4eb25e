/// The trace events of a unit. If QEMU has an event of the same meaning (hw/i386/trace-events), the event has its name;
/// otherwise it has a name in that style.
public enum TraceEvent: String, NamedTraceEvent {
  // Registers.
  case registerRead = "vtd_reg_read"
  case registerWrite = "vtd_reg_write"
  case rootTableSet = "vtd_reg_dmar_root"
  case translationEnabled = "vtd_dmar_enable"
  case interruptTableSet = "vtd_reg_ir_root"
  case interruptRemappingEnabled = "vtd_ir_enable"
  case queueEnabled = "vtd_inv_qi_enable"
  case eventRaised = "vtd_irq_generate"

  // The invalidation queue.
  case descriptor = "vtd_inv_desc"
  case queueError = "vtd_inv_qi_error"
  case invalidateAllContexts = "vtd_inv_desc_cc_global"
  case invalidateDomainContexts = "vtd_inv_desc_cc_domain"
  case invalidateDeviceContexts = "vtd_inv_desc_cc_devices"
  case invalidateAllPASIDs = "vtd_pasid_cache_gsi"
  case invalidateDomainPASIDs = "vtd_pasid_cache_dsi"
  case invalidatePASID = "vtd_pasid_cache_psi"
  case invalidateAllTranslations = "vtd_inv_desc_iotlb_global"
  case invalidateDomainTranslations = "vtd_inv_desc_iotlb_domain"
  case invalidateDomainPages = "vtd_inv_desc_iotlb_pages"
  case invalidatePASIDTranslations = "vtd_inv_desc_iotlb_pasid"
  case invalidatePASIDPages = "vtd_inv_desc_iotlb_pasid_pages"
  case invalidateDeviceTLB = "vtd_inv_desc_device_tlb"
  case invalidateInterruptEntries = "vtd_inv_desc_iec"
  case waitStatus = "vtd_inv_desc_wait_sw"
  case waitStatusFailed = "vtd_inv_desc_wait_write_fail"
  case waitInterrupt = "vtd_inv_desc_wait_irq"

  // Requests.
  case contextCached = "vtd_iotlb_cc_update"
  case pasidEntryCached = "vtd_pasid_cache_update"
  case walked = "vtd_dmar_translate"
  case passedThrough = "vtd_translate_pt"
  case faulted = "vtd_dmar_fault"
  case translationRequested = "vtd_ats_request"
  case pageRequested = "vtd_page_request"
  case pageAnswered = "vtd_page_response"

  // Remote IOTLBs.
  case remoteMissed = "vtd_remote_miss"
  case remoteMapped = "vtd_remote_map"
  case remoteUnmapped = "vtd_remote_unmap"
  case remoteCutOff = "vtd_remote_cut_off"

  // Interrupt requests.
  case interruptEntryRead = "vtd_ir_irte_get"
  case interruptRemapped = "vtd_ir_remap_msi"
  case interruptBlocked = "vtd_ir_fault"
}
